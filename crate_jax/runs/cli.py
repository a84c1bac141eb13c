"""What every command shares: its flags, its help, one-line errors, exit codes.

A command is one file: a docstring that ends with examples, a dataclass `Flags` of settings, and

    def main(argv: list[str]) -> int | None:
        flags = cli.parse(argv, Flags)

    if __name__ == "__main__":
        cli.run(main, Flags)
"""

import dataclasses
import os
import re
import runpy
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import jax
from ml_collections import ConfigDict

from crate_jax import InputError
from crate_jax.parallel import processes
from crate_jax.runs import help as helps
from crate_jax.runs import workdir as workdirs
from crate_jax.runs.builtin import PREFIX, names, unpack
from crate_jax.runs.config import Config, describe, from_config_dict, to_config_dict
from crate_jax.runs.console import console, replace_what_cannot_be_encoded
from crate_jax.runs.flags import asks_for_help, override, refuse, take
from crate_jax.settings import REQUIRED, setting

# Exit codes, next to 0: done.
FAILED = 1
BAD_INPUT = 2
# A signal stopped the run and its state is saved: start it again. EX_TEMPFAIL of sysexits.h, "try again later".
STOPPED = 75
INTERRUPTED = 130


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigFlags:
    """Of a command that starts from a configuration file."""

    config: str = setting(REQUIRED, "The configuration: FILE.py, or FILE.py:VARIANT for one of its variants.")
    workdir: str | None = setting(None, "The run's folder; if left out, runs/ and the configuration's name.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkdirFlags:
    """Of a command that looks at a run."""

    workdir: str = setting(
        REQUIRED,
        f"The folder of a run, or one that ships with the package: {', '.join(map(PREFIX.__add__, names()))}.",
    )
    checkpoint: str = setting(
        "latest", "The checkpoint: latest, best (by its evaluation), or the step of one that is kept."
    )
    output: str | None = setting(None, "Of a builtin run the folder that it is put into; left out: its name.")


F = TypeVar("F")
FromConfig = TypeVar("FromConfig", bound=ConfigFlags)
FromWorkdir = TypeVar("FromWorkdir", bound=WorkdirFlags)


def parse(argv: list[str], kind: type[F]) -> F:
    """The flags of a command that has no configuration.

    Raises:
      InputError: an unknown flag, a value that is not accepted, or a word that belongs to no flag.
      SystemExit: the command line asks for help, which is printed.
    """
    if asks_for_help(argv):
        _help(kind)
    flags, rest = take(argv, kind)
    refuse(rest, kind)
    return flags


def parse_changes(argv: list[str], kind: type[F]) -> tuple[F, list[str]]:
    """The flags, and the --config.KEY=VALUE that are passed on to other commands, each as one word.

    Raises:
      InputError, SystemExit: as `parse`.
    """
    if asks_for_help(argv):
        _help(kind)
    flags, rest = take(argv, kind)
    changes: list[str] = []
    for argument in rest:
        if argument.startswith(("--config.", "--noconfig.")):
            changes.append(argument)
        elif changes and "=" not in changes[-1] and not argument.startswith("--"):
            changes[-1] += f"={argument}"
        else:
            refuse([argument], kind)
    return flags, changes


def parse_config_file(argv: list[str], kind: type[FromConfig]) -> tuple[FromConfig, Config, Path, set[str]]:
    """(flags, config, workdir, overridden keys) of `--config=FILE.py[:VARIANT] [--workdir=DIR] [--config.KEY=VALUE …]`.

    Args:
      argv: the command line.
      kind: the command's flags.
    Raises:
      InputError: no such file, one without `get_config`, a key that does not exist, or what `parse` raises.
      SystemExit: help, with the keys of the configuration if one is named.
    """
    flags, rest = take(argv, kind, required=not asks_for_help(argv))
    if flags.config is None:
        _help(kind, [], "Name a --config=FILE to see its keys here, which are set by --config.KEY=VALUE.")
    values, name = load_config(flags.config)
    if asks_for_help(argv):
        _help(kind, describe(from_config_dict(values)), f"Keys of {flags.config}, set by --config.KEY=VALUE:")
    values, overrides = override(values, rest, kind)
    config, path = from_config_dict(values, overrides), folder(flags.workdir or f"runs/{name}")
    _agree(flags, path, config, overrides)
    return flags, config, path, overrides


def folder(workdir: str) -> Path:
    """The folder that --workdir names, with ~ as the shell reads it.

    Raises:
      InputError: a URL: runs live in folders.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", workdir):
        raise InputError(
            f"--workdir: found {workdir}; accepted: a folder, such as one where the bucket is mounted"
        )
    try:
        return Path(workdir).expanduser()
    except RuntimeError as error:
        raise InputError(f"--workdir: found {workdir} ({error}); accepted: a folder") from None


def load_config(given: str) -> tuple[ConfigDict, str]:
    """What `FILE.py[:VARIANT]` says, and a name for a run of it.

    Raises:
      InputError: no such file or variant, or a file that is no configuration.
    """
    file, _, variant = given.partition(":")
    if not Path(file).is_file():
        # An installed package has those of the checkout beside it.
        installed = Path(sysconfig.get_path("data"), "share", "crate_jax", file)
        if not (file.startswith("configs/") and installed.is_file()):
            raise InputError(f"--config: no file {file}; accepted: a Python file such as configs/base.py")
        file = str(installed)
    try:
        get_config = runpy.run_path(file).get("get_config")
        if get_config is None:
            raise InputError(f"--config: {file} defines no function get_config")
        config = get_config(variant) if variant else get_config()
    except InputError:
        raise
    except Exception as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file
        ]
        where = f", line {lines[-1]}" if lines else ""
        raise InputError(f"--config: {file}{where}: {type(error).__name__}: {error}") from None
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"--config: get_config of {file} returned {type(config).__name__}; accepted: ConfigDict"
        )
    return config, Path(file).stem + (f"-{variant}" if variant else "")


def parse_workdir(
    argv: list[str], kind: type[FromWorkdir], config: Config | None = None
) -> tuple[FromWorkdir, Config, Path, set[str]]:
    """(flags, the run's config with the changes, workdir, overridden keys) of `--workdir=DIR [--config.KEY=VALUE …]`.

    Args:
      argv: the command line.
      kind: the command's flags.
      config: taken instead of the one in the workdir, which then may be a new folder.
    Raises:
      InputError: no --workdir, one that holds no run, a key that does not exist, or what `parse` raises.
      SystemExit: help, with the keys of the run if one is named.
    """
    flags, rest = take(argv, kind, required=not asks_for_help(argv))
    if flags.workdir is None:
        _help(
            kind,
            [],
            "Name a --workdir=DIR to see the run's keys here, which are changed by --config.KEY=VALUE.",
        )
    path = _run_folder(flags, kind)
    config = workdirs.read_config(path) if config is None else config
    if asks_for_help(argv):
        _help(kind, describe(config), f"Keys of {path}, changed by --config.KEY=VALUE:")
    values, overrides = override(to_config_dict(config), rest, kind)
    config = from_config_dict(values, overrides)
    _agree(flags, path, config, overrides)
    return flags, config, path, overrides


def _agree(flags: ConfigFlags | WorkdirFlags, path: Path, config: Config, overrides: set[str]) -> None:
    """Of the processes of a job: that all have been asked for the same.

    Raises:
      Refused: on all processes, where they have not.
    """
    # What a configuration file says counts, not where it lies.
    hidden = ("config", "workdir", *processes.VARIABLES)
    own = {f"--{name}": str(value) for name, value in dataclasses.asdict(flags).items() if name not in hidden}
    values = to_config_dict(config).to_dict()
    processes.agree(
        {"--workdir": str(path), **own, "--config": values, "keys of --config": ", ".join(sorted(overrides))}
    )


def _run_folder(flags: WorkdirFlags, kind: type) -> Path:
    """The folder of the run that --workdir names; a builtin one is put where commands can write."""
    # A command may have an --output of its own, a file.
    own = kind.__dataclass_fields__["output"] is not WorkdirFlags.__dataclass_fields__["output"]
    output = None if own else flags.output
    if flags.workdir.startswith(PREFIX):
        return unpack(flags.workdir, output)
    if output is not None:
        raise InputError(
            f"--output: found {output} for {flags.workdir}; accepted: none, but for builtin runs"
        )
    return folder(flags.workdir)


def _help(kind: type, keys=None, title: str = "") -> NoReturn:
    print(helps.page(kind, keys, title))
    sys.exit(0)


def run(main: Callable[[list[str]], int | None], kind: type) -> NoReturn:
    """Run a command and end with its exit code: 0 or what `main` returns, 2 for bad input, 1 for a run that failed, each
    of these with one line on stderr.

    Args:
      main: the command, called with its command line.
      kind: its flags. With `processes.JobFlags` among them every host of a job runs the command, and they join.
    """
    _give_cpu_enough_threads()
    replace_what_cannot_be_encoded()
    code = None
    try:
        if issubclass(kind, processes.JobFlags) and not asks_for_help(sys.argv):
            processes.join(take(sys.argv, processes.JobFlags)[0])
        # Of several processes only the first one speaks.
        console.quiet = processes.several() and not processes.is_first()
        code = main(sys.argv)
    except processes.Refused as error:
        processes.fail(str(error), BAD_INPUT)
    except InputError as error:
        _fail(str(error), BAD_INPUT)
    except FloatingPointError as error:
        _fail(str(error), FAILED)
    except jax.errors.JaxRuntimeError as error:
        first = str(error).splitlines()[0]
        if processes.several() and re.search(r"(?i)gloo|nccl|connection|heartbeat|unavailable", first):
            processes.hear_why()
            _fail(f"the other processes cannot be reached; one of them has stopped: {first}", FAILED)
        if error.error_code_string != "RESOURCE_EXHAUSTED":
            _crash()
        _fail(
            f"out of memory: {first}; lower batch_size, raise accumulate, or set model.remat to dots or full",
            FAILED,
        )
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), FAILED)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except Exception as error:
        _refuse_platform(error)
        _crash()
    processes.leave()
    sys.stdout.flush()
    sys.exit(code or 0)


def _refuse_platform(error: Exception) -> None:
    """Say in one line that JAX_PLATFORMS names what is not there, where that is what jax complains of."""
    asked = os.environ.get("JAX_PLATFORMS")
    frames = traceback.extract_tb(error.__traceback__)
    if asked and any(Path(frame.filename).name == "xla_bridge.py" for frame in frames):
        reason = str(error).partition(": ")[2].partition(" (set JAX_PLATFORMS")[0]
        _fail(
            f"JAX_PLATFORMS: found {asked}, which cannot be used here{f' ({reason})' if reason else ''}; accepted: what "
            "this machine and the installed jax have, such as cpu, or nothing",
            BAD_INPUT,
        )


def _give_cpu_enough_threads() -> None:
    """Raise the number of threads of XLA's CPU pool where work waits inside it for other work: with too few threads both
    collectives of forced host devices and batched factorisations that run at once deadlock (jaxlib 0.10.2).
    """
    forced = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    needed = 4 * int(forced[1]) if forced else 4
    if needed > (os.cpu_count() or 1):
        os.environ.setdefault("PJRT_NPROC", str(needed))


def _crash() -> NoReturn:
    """Show the whole traceback of an error that nobody foresaw. With several processes leave at once: Python's own exit
    would wait at jax's barrier for the others, which wait for this process.
    """
    if not processes.several():
        raise
    traceback.print_exc()
    error = sys.exc_info()[1]
    _fail(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", FAILED)


def _fail(message: str, code: int) -> NoReturn:
    who = f"{processes.who()}: " if processes.several() else ""
    processes.fail(f"{who}{' '.join(message.split())}", code)
