"""What every command shares: flags, one-line errors, exit codes."""

import difflib
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from crate_jax import InputError
from crate_jax.parallel import processes
from crate_jax.runs import workdir as workdirs
from crate_jax.runs.config import Config, from_config_dict, to_config_dict, with_optimizer
from crate_jax.runs.console import console

EXAMPLE = """  python -m crate_jax.train --config=configs/base.py --workdir=runs/base
  python -m crate_jax.evaluate --workdir=runs/base"""


def run(main: Callable[[list[str]], None], *, joins: bool = True) -> NoReturn:
    """Run a command: one line on stderr and exit 2 for bad input, 1 for a run that failed.

    Args:
      main: the command, called with its command line.
      joins: whether it is run by every host of a job together (see `processes.join`); else it touches no other process.
    """
    _give_cpu_enough_threads()
    try:
        argv = processes.join(sys.argv) if joins else sys.argv
        # Of several processes only the first one speaks.
        console.quiet = processes.several() and not processes.is_first()
        main(argv)
    except (InputError, flags.Error) as error:
        _fail(str(error), 2)
    except FloatingPointError as error:
        _fail(str(error), 1)
    except jax.errors.JaxRuntimeError as error:
        first = str(error).splitlines()[0]
        if processes.several() and re.search(r"(?i)gloo|nccl|connection|heartbeat|unavailable", first):
            _fail(f"the others cannot be reached, one of them has stopped: {first}", 1)
        if "RESOURCE_EXHAUSTED" not in str(error):
            _crash()
        _fail(
            f"out of memory: {first}; lower batch_size, raise accumulate, or set model.remat to dots or full",
            1,
        )
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception:
        _crash()
    processes.leave()
    sys.stdout.flush()
    sys.exit(0)


def _give_cpu_enough_threads() -> None:
    """Raise the number of threads of XLA's CPU pool where work waits inside it for other work: with too few threads both
    collectives of forced host devices and batched factorisations that run at once deadlock (jaxlib 0.10.2).
    """
    forced = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    needed = 4 * int(forced[1]) if forced else 4
    if needed > (os.cpu_count() or 1):
        os.environ.setdefault("PJRT_NPROC", str(needed))


def _crash() -> NoReturn:
    """Let an error that nobody foresaw be seen whole. Python's own exit would wait at jax's barrier for the others, which
    wait for this process.
    """
    if not processes.several():
        raise
    traceback.print_exc()
    _fail("see above", 1)


def _fail(message: str, code: int) -> NoReturn:
    who = f"{processes.who()}: " if processes.several() else ""
    print(f"error: {who}{' '.join(message.split())}", file=sys.stderr, flush=True)
    # Daemon threads of data workers or of a half-finished save must not keep a failed command alive; nor may the barrier
    # at jax's exit, for the other processes learn of this one's end by its silence.
    sys.stdout.flush()
    os._exit(code)


def parse_config_file(
    argv: list[str], values: flags.FlagValues | None = None
) -> tuple[Config, Path, set[str]]:
    """`--config=FILE.py[:VARIANT] [--workdir=DIR] [--config.KEY=VALUE …]` as (config, workdir, overridden keys).

    `values` are flags of the command's own, parsed along.

    Raises:
      InputError: no such file, one without `get_config`, or a key that does not exist.
    """
    given = _flag(argv, "config")
    if given is None:
        raise InputError(f"--config is required. To start:\n{EXAMPLE}")
    file, _, variant = given.partition(":")
    if not Path(file).is_file():
        raise InputError(f"--config: no file {file}; accepted: a Python file such as configs/base.py")
    get_config = runpy.run_path(file).get("get_config")
    if get_config is None:
        raise InputError(f"--config: {file} defines no function get_config")
    config = get_config(variant) if variant else get_config()
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"--config: get_config of {file} returned {type(config).__name__}; accepted: ConfigDict"
        )
    config, overrides = _override(config, argv, values)
    name = Path(file).stem + (f"-{variant}" if variant else "")
    return from_config_dict(config, overrides), Path(_flag(argv, "workdir") or f"runs/{name}"), overrides


def parse_workdir(
    argv: list[str], values: flags.FlagValues | None = None, config: Config | None = None
) -> tuple[Config, Path, set[str]]:
    """`--workdir=DIR [--config.KEY=VALUE …]` as (the run's config with the changes, workdir, overridden keys).

    Args:
      argv: the command line.
      values: flags of the command's own, parsed along.
      config: taken instead of the one in the workdir, which then may be a new folder.
    Raises:
      InputError: no --workdir, one that holds no run, or a key that does not exist.
    """
    given = _flag(argv, "workdir")
    if given is None:
        raise InputError(f"--workdir is required: the folder of a training run. To make one:\n{EXAMPLE}")
    config = workdirs.read_config(Path(given)) if config is None else config
    config, overrides = _override(to_config_dict(config), argv, values)
    return from_config_dict(config, overrides), Path(given), overrides


def _flag(argv: list[str], name: str) -> str | None:
    """The value of --name=value, the last one given."""
    given = [argument.split("=", 1)[1] for argument in argv[1:] if argument.startswith(f"--{name}=")]
    return given[-1] if given else None


def _override(
    config: ConfigDict, argv: list[str], values: flags.FlagValues | None = None
) -> tuple[ConfigDict, set[str]]:
    """The configuration with the --config.KEY=VALUE of the command line, and the keys they set."""
    changes = [argument for argument in argv[1:] if argument.startswith("--config.")]
    with_optimizer(config, changes)
    for change in changes:
        _check_key(change.removeprefix("--config.").split("=")[0], config)
    values = flags.FlagValues() if values is None else values
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=changes)
    for name in ("config", "workdir"):
        argv = [argument for argument in argv if not argument.startswith(f"--{name}=")]
    rest = values(argv)
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    return values["config"].value, set(config_flags.get_override_values(values["config"]))


def _check_key(path: str, config: ConfigDict) -> None:
    node, seen = config, ""
    for name in path.split("."):
        known = list(node) if isinstance(node, ConfigDict) else []
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"did you mean {seen}{near[0]}?"
                if near
                else f"accepted: {', '.join(known) or 'nothing below it'}"
            )
            raise InputError(f"config: unknown key {seen}{name}; {hint}")
        node, seen = node[name], f"{seen}{name}."
