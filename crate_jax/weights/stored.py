"""An array that lies in a file: its shape and type are known, its values are read when they are asked for."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from crate_jax import InputError

# What a file of weights may hold for each byte that it takes on disk, once it has unpacked to more than SMALL bytes. Weights
# hardly compress; what unpacks to more is made to fill the memory of whoever opens it.
UNPACKED, SMALL = 100, 2**26


class Stored(NamedTuple):
    """An array in a file. `read` returns it, from the file's mapping where the format allows."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the values, as stored."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def in_memory(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays that are there already, in the same form; what is no array stays as it is."""
    return {
        name: in_memory(value) if isinstance(value, Mapping) else _stored(value)
        for name, value in arrays.items()
    }


def _stored(value: Any) -> Any:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return value
    array = with_bfloat16(np.asarray(value))
    return Stored(array.shape, array.dtype, lambda: array)


def with_bfloat16(array: np.ndarray) -> np.ndarray:
    """The array itself; two bytes of unknown type, which is what NumPy's files make of bfloat16, as bfloat16."""
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def mapped(file: np.ndarray, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A part of a file's bytes as an array, not copied where it lies on a suitable address."""
    part = file[offset : offset + int(np.prod(shape)) * dtype.itemsize]
    return part.view(np.ndarray).view(dtype).reshape(shape)


def check_unpacked(path: Any, unpacked: int, packed: int) -> None:
    """Raise for a file that says it unpacks to a multiple of its size that no weights have.

    Raises:
      InputError: it does.
    """
    if unpacked > max(SMALL, UNPACKED * packed):
        raise InputError(
            f"checkpoint: {path} takes {packed:,} bytes and unpacks to {unpacked:,}, as no weights do; it was not unpacked"
        )
