"""Opening files of weights: what they hold, by name, with nothing read but names, shapes and types.

What a file is, its first bytes say, not its name: .pth, .pt, .bin, .ckpt, .pth.tar, .PTH are all the same.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from crate_jax import InputError
from crate_jax.data import files
from crate_jax.weights import bundle, torch_files
from crate_jax.weights.stored import Stored, check_unpacked, in_memory, mapped, with_bfloat16

ACCEPTED = "accepted: .safetensors, PyTorch's .pth, .npz, or the .index of a TensorFlow checkpoint"
INDEX = ".index.json"
# What lies in a folder of Hugging Face's, in the order in which it is looked for.
IN_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    f"pytorch_model.bin{INDEX}",
    "pytorch_model.bin",
)
# First bytes of what is no file of weights, and what it is.
FOREIGN = {
    b"<": "a page of HTML or XML, which is what a dead link gives; download the file again",
    b"version https://git-lfs": "a pointer of Git LFS, not the file that it stands for; `git lfs pull` brings it",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"{": "a text of JSON",
}


def find(path: str | Path) -> Path:
    """The file that a path means: itself, the weights in a folder of Hugging Face's, or a TensorFlow checkpoint's index.

    Raises:
      InputError: there is none.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        there = [path / name for name in IN_FOLDER if (path / name).is_file()]
        if not there:
            raise InputError(f"checkpoint: {path} holds no weights; looked for: {', '.join(IN_FOLDER)}")
        return there[0]
    index = bundle.index_of(path)
    if index is not None:
        return index
    if not path.is_file():
        raise InputError(f"checkpoint: no file {path}")
    return path


def parts(path: Path) -> list[Path]:
    """All files that belong to a file of weights, itself first."""
    if path.name.endswith(INDEX):
        return [path, *sorted({path.parent / name for name in _weight_map(path).values()})]
    return [path, *(bundle.data_files(path) if bundle.is_index(path) else [])]


def fingerprint(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_file(path: str | Path) -> dict[str, Any]:
    """What a file holds: names to `Stored` arrays, nested where the file is, other objects among them.

    Raises:
      InputError: no such file, one that is no file of weights, is damaged, or does what weights need not. No code in it is
        ever run.
    """
    path = find(path)
    try:
        content = _reader(path)(path)
    except ImportError as error:
        raise InputError(f"checkpoint: reading {path} needs the package {error.name}") from None
    except MemoryError:
        raise InputError(f"checkpoint: {path} asks for more memory than there is") from None
    except Exception as error:
        # Every reader has its own exceptions for a truncated or foreign file; the user needs one line.
        text = str(error) if str(error).startswith("checkpoint: ") else f"checkpoint: {path} {_why(error)}"
        raise InputError(" ".join(_printable(text).split())) from None
    if not isinstance(content, Mapping):
        raise InputError(
            f"checkpoint: {path} holds one {type(content).__name__.strip('_')}, not arrays by name"
        )
    return dict(content)


def _why(error: Exception) -> str:
    if isinstance(error, zipfile.BadZipFile | EOFError):
        return f"cannot be read: it is cut off or damaged ({error})"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"cannot be read: {text}"


def _printable(text: str) -> str:
    """Without escape codes: names in a file are whatever somebody wrote there."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _reader(path: Path) -> Callable[[Path], Any]:
    """The function that opens the file, by its first bytes."""
    if path.name.endswith(INDEX):
        return _sharded
    if bundle.is_index(path):
        return bundle.read
    with path.open("rb") as file:
        start = file.read(32)
    # Before the others: it begins with a length, which may be any bytes.
    if start[8:9] == b"{":
        return _safetensors
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            pickled = any(name.endswith("data.pkl") for name in archive.namelist())
        return torch_files.read_zip if pickled else _npz
    if start.startswith(b"\x80"):
        return torch_files.read_stream
    foreign = next((what for first, what in FOREIGN.items() if start.lstrip().startswith(first)), None)
    what = "an empty file" if not start else foreign or "not a file of weights that is known"
    raise InputError(f"checkpoint: {path} is {what}; {ACCEPTED}")


def _npz(path: Path) -> dict[str, Stored]:
    archive = zipfile.ZipFile(path)
    check_unpacked(path, sum(info.file_size for info in archive.infolist()), path.stat().st_size)
    found = {}
    for info in archive.infolist():
        with archive.open(info) as entry:
            shape, fortran, dtype = _header(entry)
            offset = entry.tell()
        if dtype.hasobject:
            raise InputError(f"{info.filename} holds Python objects, which are never loaded")
        expected = offset + int(np.prod(shape, dtype=object)) * dtype.itemsize
        if expected != info.file_size:
            raise InputError(f"{info.filename} says it has {expected:,} bytes, has {info.file_size:,}")
        as_bfloat16 = with_bfloat16(np.empty(0, dtype)).dtype

        def read(info=info, offset=offset, shape=shape, fortran=fortran, dtype=dtype) -> np.ndarray:
            if info.compress_type == zipfile.ZIP_STORED:
                place = _data_offset(path, info) + offset
                flat = mapped(np.memmap(path, np.uint8, "r"), place, (int(np.prod(shape)),), dtype)
            else:
                with archive.open(info) as entry:
                    flat = np.frombuffer(entry.read()[offset:], dtype)
            return with_bfloat16(flat.reshape(shape, order="F" if fortran else "C"))

        found[info.filename.removesuffix(".npy")] = Stored(shape, as_bfloat16, read)
    return found


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where an entry's content begins in the file."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return info.header_offset + 30 + name + extra


def _safetensors(path: Path) -> dict[str, Stored]:
    from safetensors import safe_open

    # The library holds the header to the file, and refuses what lies; it would copy what is read.
    with safe_open(path, "numpy"), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    whole, found = np.memmap(path, np.uint8, "r"), {}
    for name, about in header.items():
        if about["dtype"] not in SAFETENSORS:
            raise InputError(f"{name} is of type {about['dtype']}; accepted: {', '.join(SAFETENSORS)}")
        shape, dtype = tuple(about["shape"]), np.dtype(SAFETENSORS[about["dtype"]])
        begin = 8 + length + about["data_offsets"][0]
        found[name] = Stored(shape, dtype, partial(mapped, whole, begin, shape, dtype))
    return found


SAFETENSORS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": with_bfloat16(np.empty(0, "V2")).dtype,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def _weight_map(path: Path) -> dict[str, str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in values.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"checkpoint: {path} is no index of shards: it has no weight_map") from None
    outside = [file for file in names.values() if Path(file).name != file]
    if outside:
        raise InputError(f"checkpoint: {path} names {outside[0]}; accepted: files beside it")
    return names


def _sharded(path: Path) -> dict[str, Stored]:
    names = _weight_map(path)
    shards = {}
    for file in sorted(set(names.values())):
        if not (path.parent / file).is_file():
            raise InputError(f"checkpoint: {path} names the shard {file}, which is not there")
        shards[file] = open_file(path.parent / file)
    lost = [name for name, file in names.items() if name not in shards[file]]
    if lost:
        raise InputError(
            f"checkpoint: {path.parent / names[lost[0]]} does not hold {lost[0]}, which {path.name} says"
        )
    return {name: shards[file][name] for name, file in names.items()}


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write arrays to a file, whole or not at all, in the format that its name ends in.

    Args:
      path: ends in one of WRITERS.
      arrays: float32, by name.
      metadata: kept by .safetensors alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as file:
        WRITERS[path.suffix.lower()](file, arrays, metadata)


def _write_safetensors(file: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    # One array after the other: the library's own writer makes the whole file in memory first, or under another name.
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for array in arrays.values():
        assert array.dtype == np.float32
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


WRITERS: dict[str, Callable[[BinaryIO, Mapping[str, np.ndarray], Mapping[str, str]], None]] = {
    ".safetensors": _write_safetensors,
    ".pth": lambda file, arrays, _: torch_files.write(file, arrays),
    ".npz": lambda file, arrays, _: np.savez(file, **arrays),  # type: ignore[arg-type]
}

__all__ = ["ACCEPTED", "WRITERS", "find", "fingerprint", "in_memory", "open_file", "parts", "write"]
