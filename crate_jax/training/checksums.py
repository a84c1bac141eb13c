"""Checksums of a checkpoint's files: written before the checkpoint counts, compared before it is used.

Each process sums up the files that it wrote; process 0 adds the others and writes one list, `checksums.txt`, as the last
file before Orbax's temporary folder gets its final name. That there is a list, and the step, also stand in the checkpoint's
metadata: a list that is gone is damage, and so is a folder under the number of another step.
"""

import asyncio
import json
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.future import ChainedFuture
from orbax.checkpoint.path import atomicity

from crate_jax.runs import sums
from crate_jax.runs.sums import LIST

# Beside the folder of a process, until process 0 has read it.
OF_PROCESS = "checksums.process_{}"
METADATA = "_CHECKPOINT_METADATA"
# Without these no checkpoint is one, of whatever version.
ALWAYS_THERE = (METADATA, "default/_METADATA", "default/manifest.ocdbt", "metrics/metrics")


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
            (folder / OF_PROCESS.format(process)).write_text(sums.lines(folder, own), encoding="utf-8")

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
            crc, size, name = sums.LINE.fullmatch(line).groups()
            name = f"{part.parent.name}/{name}"
            known.add(name)
            lines.append(f"{crc} {size} {name}\n")
        part.unlink()
    others = [path for path in files_of(folder) if path.relative_to(folder).as_posix() not in known]
    (folder / LIST).write_text("".join(lines) + sums.lines(folder, others), encoding="utf-8")


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
        expected = sums.read(folder / LIST)
        there = {path.relative_to(folder).as_posix() for path in files_of(folder)} - {LIST}
        for name in sorted(expected.keys() ^ there):
            return f"{name} is missing" if name in expected else f"{name} is not in {LIST}"
        names = sorted(expected, key=lambda name: (-expected[name][1], name))[part::parts]
        found = sums.sums([folder / name for name in names])
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
