"""Runs that ship in the package, small ones to try every command on: `--workdir=builtin:crate-digits`.

Such a folder holds a run's parameters alone, `params.safetensors`, in place of checkpoints; `python -m crate_jax.convert
--input=RUN --output=FOLDER` makes one of any run.
"""

import os
import shutil
from pathlib import Path

import crate_jax
from crate_jax import InputError
from crate_jax.runs import workdir as workdirs
from crate_jax.runs.console import console
from crate_jax.settings import one_of

PREFIX = "builtin:"
# The package is only read.
FOLDER = Path(crate_jax.__file__).parent / "weights" / "builtin"


def names() -> list[str]:
    """The runs that there are."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def locate(place: str) -> Path:
    """The folder to read a run from: that of `builtin:NAME` in the package, any other place as it is.

    Raises:
      InputError: no such builtin run.
    """
    if not place.startswith(PREFIX):
        return Path(place)
    name = place.removeprefix(PREFIX)
    one_of("builtin run", name, names())
    return FOLDER / name


def unpack(place: str, output: str | None) -> Path:
    """A copy of a builtin run that commands can write to.

    Args:
      place: builtin:NAME.
      output: its folder; None: NAME. One that is there already is used if it is a copy of this run.
    Raises:
      InputError: no such builtin run, or a folder that holds something else.
    """
    source = locate(place)
    folder = Path(output or source.name).expanduser()
    if folder.exists():
        ours, theirs = (path / workdirs.PROVENANCE for path in (source, folder))
        if not theirs.is_file() or theirs.read_bytes() != ours.read_bytes():
            raise InputError(
                f"--workdir: {place} is put into {folder}, which holds something else; say where with --output"
            )
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.copytree(source, temporary, copy_function=shutil.copyfile)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    console.print(f"{place} is in {folder}", markup=False)
    return folder
