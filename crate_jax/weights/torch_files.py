"""PyTorch's files, read and written without PyTorch.

A .pth file is a zip archive of a pickle and of the arrays that it names, one entry each; before PyTorch 1.6 it was the
pickle with the arrays after it. Pickles can call any function, so this reader calls none: it knows how a tensor is written,
puts an inert object in the place of whatever trainers keep beside the weights (a Namespace of arguments, say), and refuses a
file that names anything else.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import ml_dtypes
import numpy as np

from crate_jax import InputError
from crate_jax.weights.stored import Stored, check_unpacked, mapped

TYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# What begins a file of PyTorch before 1.6, and the version that follows.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# Packages whose objects trainers keep beside the weights. None of their code is imported or run.
BESIDE = {
    "argparse", "collections", "numpy", "torch", "pytorch_lightning", "lightning", "lightning_fabric", "omegaconf", "timm",
    "pathlib", "datetime", "yacs", "easydict", "ml_collections", "addict", "mmcv", "mmengine", "fvcore", "transformers",
    "typing", "enum", "copyreg", "_codecs", "functools", "__main__",
}  # fmt: skip
BUILTINS = {
    "set",
    "frozenset",
    "slice",
    "range",
    "complex",
    "bytearray",
    "object",
    "list",
    "dict",
    "int",
    "float",
}
# Of a pickle itself: names and shapes take kilobytes.
LARGEST_PICKLE = 2**28


class _Beside:
    """Stands for an object that is not a tensor: takes whatever the pickle does to it, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Beside":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Nothing."""

    extend = add = append


class _Storage:
    """The array that tensors are parts of; where it lies in the file is known once the pickle is read."""

    def __init__(self, key: str, dtype: Any, length: int):
        self.key, self.dtype, self.length = str(key), np.dtype(dtype), int(length)
        self.file: np.ndarray | None = None
        self.offset = 0

    def read(self) -> np.ndarray:
        """All of it, from the file's mapping."""
        assert self.file is not None
        return mapped(self.file, self.offset, (self.length,), self.dtype)


def _tensor(storage: Any, offset: int, shape: Any, stride: Any, *rest: Any) -> Stored:
    """What a pickle calls to make a tensor out of a part of a storage."""
    shape, stride = tuple(int(n) for n in shape), tuple(int(n) for n in stride)
    end = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1
    inside = 0 <= offset and end <= storage.length and min((*shape, *stride), default=0) >= 0
    if 0 not in shape and not inside:
        raise InputError(f"tensor {storage.key} of shape {shape} reaches beyond its {storage.length} numbers")

    def read() -> np.ndarray:
        strides = tuple(step * storage.dtype.itemsize for step in stride)
        return np.lib.stride_tricks.as_strided(storage.read()[offset:], shape, strides, writeable=False)

    return Stored(shape, storage.dtype, read)


def _parameter(tensor: Any, *rest: Any) -> Any:
    return tensor


class _Unpickler(pickle.Unpickler):
    """Reads a pickle of tensors, see above. `storages` are those that it named."""

    KNOWN: ClassVar = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    }

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8", errors="replace")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name.

        Raises:
          InputError: nothing that belongs into a file of weights.
        """
        if (module, name) in self.KNOWN:
            return self.KNOWN[module, name]
        if module in ("torch", "torch.storage") and name in TYPES:
            return type(name, (_Beside,), {"dtype": np.dtype(TYPES[name])})
        if module == "torch._utils" and name.startswith("_rebuild"):
            raise InputError(f"it holds a tensor that {name} makes; accepted: dense ones")
        builtin = module in ("builtins", "__builtin__") and name in BUILTINS
        if not builtin and module.partition(".")[0] not in BESIDE:
            raise InputError(
                f"it names {module}.{name}, which weights have no need of; nothing in it was run"
            )
        return type(name, (_Beside,), {})

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that the pickle refers to."""
        kind, storage, key, _, length, *_ = pid
        if kind != "storage" or not hasattr(storage, "dtype"):
            raise InputError(
                f"it holds a {kind} of {getattr(storage, '__name__', storage)}, which is not known"
            )
        return self.storages.setdefault(str(key), _Storage(key, storage.dtype, length))


def read_zip(path: Path) -> Any:
    """What a .pth file of PyTorch 1.6 and later holds, its tensors being `Stored`.

    Raises:
      InputError: a damaged or hostile file.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = {info.filename: info for info in archive.infolist()}
        check_unpacked(path, sum(info.file_size for info in entries.values()), size)
        (pickled,) = (name for name in entries if name.endswith("data.pkl"))
        root = pickled.removesuffix("data.pkl")
        if entries[pickled].file_size > LARGEST_PICKLE:
            raise InputError(f"its pickle says that it has {entries[pickled].file_size:,} bytes")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise InputError("its numbers are big-endian; accepted: little-endian")
        unpickler = _Unpickler(io.BytesIO(archive.read(pickled)))
        content = unpickler.load()
        bytes_of_file = np.memmap(path, np.uint8, "r")
        for storage in unpickler.storages.values():
            entry = entries.get(f"{root}data/{storage.key}")
            if entry is None:
                raise InputError(f"storage {storage.key} is missing")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise InputError(f"storage {storage.key} is compressed, as PyTorch's never are")
            file.seek(entry.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            _place(storage, bytes_of_file, entry.header_offset + 30 + name + extra, entry.file_size)
    return content


def read_stream(path: Path) -> Any:
    """As `read_zip`, of a file of PyTorch before 1.6."""
    with path.open("rb") as file:
        unpicklers = [_Unpickler(file) for _ in range(5)]
        magic, protocol, _, content, keys = (unpickler.load() for unpickler in unpicklers)
        if magic != MAGIC or protocol != PROTOCOL:
            raise InputError("a pickle, but not one of PyTorch's files")
        bytes_of_file, storages = np.memmap(path, np.uint8, "r"), unpicklers[3].storages
        for key in keys:
            (length,) = struct.unpack("<q", file.read(8))
            storage = storages[str(key)]
            _place(storage, bytes_of_file, file.tell(), length * storage.dtype.itemsize)
            file.seek(length * storage.dtype.itemsize, io.SEEK_CUR)
    return content


def _place(storage: _Storage, file: np.ndarray, offset: int, nbytes: int) -> None:
    needed = storage.length * storage.dtype.itemsize
    if storage.length < 0 or needed > nbytes or offset + needed > len(file):
        raise InputError(f"storage {storage.key} should have {needed:,} bytes, which are not there")
    storage.file, storage.offset = file, offset


def write(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Write float32 arrays as `torch.save` writes a state dict of them.

    Args:
      file: open for writing.
      arrays: by name, each with its values one after the other.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr("weights/data.pkl", _pickled(arrays))
        archive.writestr("weights/byteorder", "little")
        for number, array in enumerate(arrays.values()):
            with archive.open(f"weights/data/{number}", "w", force_zip64=True) as entry:
                entry.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        archive.writestr("weights/version", "3\n")


def _pickled(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The pickle: an OrderedDict, each entry a call of PyTorch's that makes a tensor of a storage."""
    ordered = b"ccollections\nOrderedDict\n)R"
    out = [b"\x80\x02", ordered, b"("]
    for number, (name, array) in enumerate(arrays.items()):
        assert array.dtype == np.float32
        strides = [step // array.itemsize for step in np.ascontiguousarray(array).strides]
        storage = [_text("storage"), b"ctorch\nFloatStorage\n", _text(str(number)), _text("cpu")]
        out += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(", b"(", *storage, _number(array.size)]
        out += [
            b"tQ",
            _number(0),
            _tuple(array.shape),
            _tuple(strides[: array.ndim]),
            b"\x89",
            ordered,
            b"tR",
        ]
    return b"".join([*out, b"u."])


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _number(value: int) -> bytes:
    encoded = value.to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + encoded


def _tuple(values: Any) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"
