"""TensorFlow's checkpoints, read without TensorFlow.

A checkpoint NAME is NAME.index, a sorted table (LevelDB's format) from the names of variables to where their values lie, and
NAME.data-00000-of-00032 and so on, the values one after the other. The table's entries are protocol buffers, of which a few
fields are needed: see `_entry`.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from crate_jax import InputError
from crate_jax.weights.stored import Stored, mapped

SUFFIX = ".index"
# What the last eight bytes of a table are.
MAGIC = 0xDB4775248B80FB57
FOOTER = 48
# tensorflow/core/framework/types.proto
TYPES: dict[int, Any] = {
    1: np.float32,
    2: np.float64,
    3: np.int32,
    4: np.uint8,
    5: np.int16,
    6: np.int8,
    9: np.int64,
    10: np.bool_,
    14: ml_dtypes.bfloat16,
    19: np.float16,
}
BEFORE_DATA = re.compile(r"(\.index|\.meta|\.data-\d{5}-of-\d{5})$")


def is_index(path: Path) -> bool:
    """Whether a file is the index of a checkpoint."""
    if path.suffix != SUFFIX or path.stat().st_size < FOOTER:
        return False
    with path.open("rb") as file:
        file.seek(-8, 2)
        return file.read() == struct.pack("<Q", MAGIC)


def index_of(path: Path) -> Path | None:
    """The index of the checkpoint that a path names: by its own name, as TensorFlow does, or by one of its files."""
    name = BEFORE_DATA.sub("", path.name)
    index = path.with_name(name + SUFFIX)
    return index if index.is_file() and is_index(index) else None


def data_files(index: Path) -> list[Path]:
    """The files with the values of a checkpoint."""
    stem = index.name.removesuffix(SUFFIX)
    return sorted(path for path in index.parent.glob("*.data-*") if path.name.startswith(f"{stem}.data-"))


def read(index: Path) -> dict[str, Any]:
    """The variables of a checkpoint, by name, `Stored` where they are numbers.

    Raises:
      InputError: a damaged index, data that are missing or cut off, or a variable that is spread over several files.
    """
    entries = {key.decode(): dict(_fields(value)) for key, value in _table(index.read_bytes())}
    shards = int(entries.pop("", {}).get(1, 1))
    stem, mapping = index.name.removesuffix(SUFFIX), {}
    for number in range(shards):
        file = index.with_name(f"{stem}.data-{number:05d}-of-{shards:05d}")
        if not file.is_file():
            raise InputError(
                f"{file.name} is not beside it; a checkpoint of {shards} parts needs all of them"
            )
        mapping[number] = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, np.uint8)
    return {name: _entry(name, fields, mapping) for name, fields in entries.items()}


def _entry(name: str, fields: dict[int, Any], mapping: dict[int, np.ndarray]) -> Stored | None:
    """A BundleEntryProto: type 1, shape 2, number of the file 3, offset 4, size 5, slices 7. None: not of numbers."""
    if fields.get(1, 0) not in TYPES:
        return None
    if 7 in fields:
        raise InputError(f"variable {name} is stored in slices; accepted: whole variables")
    dtype = np.dtype(TYPES[fields.get(1, 0)])
    dims = [value for number, value in _fields(fields.get(2, b"")) if number == 2]
    shape = tuple(dict(_fields(dim)).get(1, 0) for dim in dims)
    file, offset, size = mapping.get(fields.get(3, 0)), fields.get(4, 0), fields.get(5, 0)
    if (
        file is None
        or offset + size > len(file)
        or size != int(np.prod(shape, dtype=object)) * dtype.itemsize
    ):
        raise InputError(f"the values of {name}, {size:,} bytes for shape {shape}, are not there; cut off?")
    return Stored(shape, dtype, lambda: mapped(file, offset, shape, dtype))


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table: the last bytes say where the index of its blocks lies, that where the blocks lie."""
    place = len(data) - FOOTER
    _, place = _varint(data, place)
    _, place = _varint(data, place)
    offset, place = _varint(data, place)
    size, _ = _varint(data, place)
    for _, handle in _block(data, offset, size):
        offset, place = _varint(handle, 0)
        size, _ = _varint(handle, place)
        yield from _block(data, offset, size)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block; a key is written as what it does not share with the one before."""
    if offset + size + 5 > len(data) or size < 4:
        raise InputError("its index is damaged")
    if data[offset + size]:
        raise InputError("its index is compressed, as TensorFlow's are not")
    block = data[offset : offset + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    place, end, key = 0, size - 4 - 4 * restarts, b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + own]
        yield key, block[place + own : place + own + length]
        place += own + length


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protocol buffer."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        value: Any
        if kind == 0:
            value, place = _varint(message, place)
        elif kind == 2:
            length, place = _varint(message, place)
            value, place = message[place : place + length], place + length
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value, place = int.from_bytes(message[place : place + width], "little"), place + width
        else:
            raise InputError("its index is damaged")
        yield tag >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if place >= len(data):
            raise InputError("its index is cut off")
        byte = data[place]
        value, place = value | (byte & 127) << shift, place + 1
        if byte < 128:
            return value, place
        shift += 7
    raise InputError("its index is damaged")
