"""What every command shares: flags, one-line errors, exit codes."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from crate_jax import InputError
from crate_jax.training import workdir as workdirs
from crate_jax.training.config import Config, from_config_dict, to_config_dict

EXAMPLE = """  python -m crate_jax.train --config=configs/base.py --workdir=runs/base
  python -m crate_jax.evaluate --workdir=runs/base"""


def run(main: Callable[[list[str]], None]) -> NoReturn:
    """Run a command: one line on stderr and exit 2 for bad input, 1 for a run that failed."""
    try:
        main(sys.argv)
    except (InputError, flags.Error) as error:
        _fail(str(error), 2)
    except FloatingPointError as error:
        _fail(str(error), 1)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).splitlines()[0]
        _fail(
            f"out of memory: {first}; lower batch_size, raise accumulate, or set model.remat to dots or full",
            1,
        )
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    sys.stdout.flush()
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    # Daemon threads of data workers or of a half-finished save must not keep a failed command alive.
    sys.stdout.flush()
    os._exit(code)


def parse_config_file(argv: list[str]) -> tuple[Config, Path, set[str]]:
    """`--config=FILE.py[:VARIANT] [--workdir=DIR] [--config.KEY=VALUE …]` as (config, workdir, overridden keys)."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Where the run is kept.", flag_values=values)
    config_flags.DEFINE_config_file("config", None, "FILE.py or FILE.py:VARIANT", flag_values=values)
    given = next((arg.split("=", 1)[1] for arg in argv[1:] if arg.startswith("--config=")), None)
    if given is None:
        raise InputError(f"--config is required. To start:\n{EXAMPLE}")
    file, _, variant = given.partition(":")
    if not Path(file).is_file():
        raise InputError(f"--config: no file {file}; accepted: a Python file such as configs/base.py")
    try:
        rest = values(argv)
    except AttributeError as error:
        raise InputError(f"--config: unknown key {str(error).strip(chr(34))}") from None
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    config = values["config"].value
    if not isinstance(config, ConfigDict):
        raise InputError(f"--config: {file} returned no ConfigDict from get_config({variant or ''})")
    overrides = set(config_flags.get_override_values(values["config"]))
    name = Path(file).stem + (f"-{variant}" if variant else "")
    return from_config_dict(config, overrides), Path(values["workdir"].value or f"runs/{name}"), overrides


def parse_workdir(
    argv: list[str], values: flags.FlagValues | None = None, config: Config | None = None
) -> tuple[Config, Path, set[str]]:
    """`--workdir=DIR [--config.KEY=VALUE …]` as (the run's config with the changes, workdir, overridden keys).

    Args:
      argv: the command line.
      values: flags of the command's own; they are parsed along.
      config: taken instead of the one in the workdir, which then may be a new folder.
    """
    given = next((arg.split("=", 1)[1] for arg in argv[1:] if arg.startswith("--workdir=")), None)
    if given is None:
        raise InputError(f"--workdir is required: the folder of a training run. To make one:\n{EXAMPLE}")
    config = workdirs.read_config(Path(given)) if config is None else config
    values = flags.FlagValues() if values is None else values
    flags.DEFINE_string("workdir", None, "A training run.", flag_values=values)
    config_flags.DEFINE_config_dict("config", to_config_dict(config), flag_values=values)
    try:
        rest = values(argv)
    except AttributeError as error:
        raise InputError(f"--config: unknown key {str(error).strip(chr(34))}") from None
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    overrides = set(config_flags.get_override_values(values["config"]))
    return from_config_dict(values["config"].value, overrides), Path(given), overrides
