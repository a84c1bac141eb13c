"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write: under a temporary name until everything in it is on disk, then under its own.

    What stood there before stays until then, and stays if writing fails. The temporary name holds the number of the
    process, so two that write the same file do not mix.

    Args:
        path: of the file; its folder exists.

    Raises:
        OSError: as `open`, `os.fsync` and `os.replace`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # A write does not know its file.
            error.filename = str(path)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Gives a file that a library wrote under another name its own, once it is on disk; both lie on one disk."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
