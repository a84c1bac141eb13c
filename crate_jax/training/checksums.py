"""Checksums of a checkpoint's files: written before the checkpoint counts, compared before it is used.

Each process sums up the files that it wrote; process 0 adds the others and writes one list, `checksums.txt`, as the last
file before Orbax's temporary folder gets its final name. That there is a list, and the step, also stand in the checkpoint's
metadata: a list that is gone is damage, and so is a folder under the number of another step.
"""

import asyncio
import concurrent.futures
import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.future import ChainedFuture
from orbax.checkpoint.path import atomicity

LIST = "checksums.txt"
# Beside the folder of a process, until process 0 has read it.
OF_PROCESS = "checksums.process_{}"
METADATA = "_CHECKPOINT_METADATA"
# Without these no checkpoint is one, of whatever version.
ALWAYS_THERE = (METADATA, "default/_METADATA", "default/manifest.ocdbt", "metrics/metrics")
CHUNK = 1 << 17
LINE = re.compile(r"([0-9a-f]{8}) ([0-9]+) (.+)")


def about(step: int) -> dict:
    """What the metadata of a checkpoint say of it."""
    return {"checksums": "crc32", "step": step}


class SummingHandler(ocp.StandardCheckpointHandler):
    """Orbax's handler; each process sums up its own files once they are written, before all wait for one another."""

    async def async_save(self, directory, *args, **kwargs):
        written = await super().async_save(directory, *args, **kwargs)
        process = jax.process_index()

        def sum_up() -> None:
            folder = Path(directory)
            own = [path for path in files_of(folder / f"ocdbt.process_{process}")]
            (folder / OF_PROCESS.format(process)).write_text(_lines(folder, own), encoding="utf-8")

        return [ChainedFuture(written or [], sum_up)]

    @classmethod
    def typestr(cls) -> str:
        # The files are those of Orbax's own handler, and read by it.
        parent = ocp.StandardCheckpointHandler
        return f"{parent.__module__}.{parent.__qualname__}"


class SummedPath(atomicity.AtomicRenameTemporaryPath):
    """Orbax's temporary folder; the checkpoint's list is written when all else is there, before the last rename."""

    async def finalize(self) -> None:
        final = self._final_path
        if not final.name.isdecimal():  # An item of a checkpoint.
            await super().finalize()
            return
        # Orbax completes the metadata and renames in one go: to another temporary name here.
        self._final_path = final.with_name(f"{self.get().name}-complete")
        await super().finalize()
        await asyncio.to_thread(write_list, Path(self._final_path))
        self._final_path.rename(final)
        self._final_path = final


def write_list(folder: Path) -> None:
    """Write the list of a complete checkpoint, with the sums that the processes have left."""
    lines, known = [], set()
    for part in sorted(folder.glob(f"*/{OF_PROCESS.format('*')}")):
        for line in part.read_text(encoding="utf-8").splitlines():
            crc, size, name = LINE.fullmatch(line).groups()
            name = f"{part.parent.name}/{name}"
            known.add(name)
            lines.append(f"{crc} {size} {name}\n")
        part.unlink()
    others = [path for path in files_of(folder) if path.relative_to(folder).as_posix() not in known]
    (folder / LIST).write_text("".join(lines) + _lines(folder, others), encoding="utf-8")


def damage(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint, in words; None where nothing is found.

    Args:
      folder: of the checkpoint; its name is the step.
      part, parts: which part of the files to read, by size; what is there at all is always looked at.
    """
    missing = [name for name in ALWAYS_THERE if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    try:
        marked = has_list(folder)
        if marked is None and not (folder / LIST).exists():
            return None
        if not (folder / LIST).exists():
            return f"{LIST} is missing"
        expected = _read_list(folder)
        there = {path.relative_to(folder).as_posix() for path in files_of(folder)} - {LIST}
        for name in sorted(expected.keys() ^ there):
            return f"{name} is missing" if name in expected else f"{name} is not in {LIST}"
        names = sorted(expected, key=lambda name: (-expected[name][1], name))[part::parts]
        found = _sums([folder / name for name in names])
    except (OSError, ValueError) as error:
        return " ".join(str(error).split())[:200]
    for name, value in zip(names, found, strict=True):
        if value != expected[name]:
            return f"{name} is not what was written (other checksum)"
    if marked != about(int(folder.name)):
        return f"it is a copy of step {(marked or {}).get('step')}"
    return None


def has_list(folder: Path) -> dict | None:
    """What the metadata say of the checksums; None in a checkpoint of an older version, which has none.

    Raises:
      ValueError: unreadable metadata.
    """
    try:
        values = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        return values.get("custom_metadata") or None
    except (ValueError, AttributeError):
        raise ValueError(f"{METADATA} is not what was written") from None


def files_of(folder: Path) -> list[Path]:
    """All files in it, but not what systems put beside them, whose names begin with a dot."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _read_list(folder: Path) -> dict[str, tuple[int, int]]:
    text = (folder / LIST).read_bytes().decode("utf-8", errors="replace")
    matches = [LINE.fullmatch(line) for line in text.splitlines()]
    if not matches or not all(matches):
        raise ValueError(f"{LIST} is not what was written")
    return {match[3]: (int(match[1], 16), int(match[2])) for match in matches}


def _lines(folder: Path, files: list[Path]) -> str:
    sums = zip(files, _sums(files), strict=True)
    return "".join(f"{crc:08x} {size} {path.relative_to(folder).as_posix()}\n" for path, (crc, size) in sums)


def _sums(files: Iterable[Path]) -> list[tuple[int, int]]:
    """CRC-32 and size of each file, several at a time: zlib works outside Python's lock."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(_sum, files))


def _sum(file: Path) -> tuple[int, int]:
    crc = size = 0
    # One buffer, which stays in the processor's cache: new memory for every chunk costs more than its sum.
    buffer = memoryview(bytearray(CHUNK))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            crc, size = zlib.crc32(buffer[:count], crc), size + count
    return crc, size
