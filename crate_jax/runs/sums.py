"""Lists of checksums, a file per line: CRC-32, size and name, as text."""

import concurrent.futures
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

# The list of a folder, in it.
LIST = "checksums.txt"
CHUNK = 1 << 17
LINE = re.compile(r"([0-9a-f]{8}) ([0-9]+) (.+)")

# CRC-32 and size.
Sum = tuple[int, int]


def sum_of(file: Path) -> Sum:
    """The checksum of one file."""
    crc = size = 0
    # One buffer, which stays in the processor's cache: new memory for every chunk costs more than its sum.
    buffer = memoryview(bytearray(CHUNK))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            crc, size = zlib.crc32(buffer[:count], crc), size + count
    return crc, size


def sums(files: Iterable[Path]) -> list[Sum]:
    """The checksum of each file, several at a time: zlib works outside Python's lock."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(sum_of, files))


def lines(folder: Path, files: Sequence[Path]) -> str:
    """The lines of a list for files somewhere in `folder`."""
    return "".join(
        f"{crc:08x} {size} {path.relative_to(folder).as_posix()}\n"
        for path, (crc, size) in zip(files, sums(files), strict=True)
    )


def read(path: Path) -> dict[str, Sum]:
    """Name of a file → its checksum, of a list.

    Raises:
      OSError: no such file.
      ValueError: a list that is damaged.
    """
    text = path.read_bytes().decode("utf-8", errors="replace")
    matches = [LINE.fullmatch(line) for line in text.splitlines()]
    if not matches or not all(matches):
        raise ValueError(f"{path.name} is not what was written")
    return {match[3]: (int(match[1], 16), int(match[2])) for match in matches if match}
