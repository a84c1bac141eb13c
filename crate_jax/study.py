"""Run a study: train its models one after the other, then draw what they say together.

    python -m crate_jax.study --config=configs/igpt.py:scaling --workdir=runs/scaling
    python -m crate_jax.study --config=configs/crate.py:ablation --workdir=runs/ablation --config.total_epochs=2

Started again, it does what is not done yet; --config.KEY=VALUE changes every model alike, and must stay as it was at the
first start.
"""

import dataclasses
import importlib
import json
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from crate_jax import InputError
from crate_jax.runs import cli
from crate_jax.runs.console import console, wide_table
from crate_jax.runs.metrics import read_metrics, write_atomically
from crate_jax.runs.studies import Study
from crate_jax.settings import REQUIRED, one_of, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Which study, and where."""

    config: str = setting(REQUIRED, "A study of a configuration file, FILE.py:STUDY.")
    workdir: Path = setting(REQUIRED, "The study's folder; each of its runs has a folder in it.")


def main(argv: list[str]) -> int | None:
    flags, changes = cli.parse_changes(argv, Flags)
    file, _, study = flags.config.partition(":")
    if not Path(file).is_file():
        raise InputError(f"--config: no file {file}; accepted: a Python file such as configs/igpt.py")
    studies = runpy.run_path(file).get("STUDIES", {})
    one_of(f"--config: study of {file}", study, studies)
    workdir, names = cli.folder(str(flags.workdir)), list(studies[study].runs)
    analysis = load_analysis(studies[study])
    # A change that no model accepts is found before the first one is trained.
    cli.override(cli.load_config(f"{file}:{study}/{names[0]}")[0], changes, Flags)
    record(workdir, study, changes)
    for name in names:
        run = workdir / name
        for command in analysis.COMMANDS:
            if is_done(command, run):
                continue
            console.print(f"{command} {study}/{name}")
            start = [f"--config={file}:{study}/{name}", *changes] if command == "train" else []
            code = _call(command, f"--workdir={run}", *start)
            if code:
                return code
    rows = analysis.read(workdir, names)
    picture = analysis.write(rows, workdir)
    wide_table(f"{study}: {len(names)} runs", list(analysis.HEADERS), [row.cells() for row in rows])
    console.print(f"written: {picture}")


def load_analysis(study: Study) -> ModuleType:
    """The module that reads a study's runs.

    Raises:
      InputError: there is no such module.
    """
    try:
        return importlib.import_module(study.analysis)
    except ImportError as error:
        raise InputError(
            f"--config: the study's analysis {study.analysis} cannot be imported ({error}); accepted: a module such as "
            "crate_jax.analysis.scaling"
        ) from None


def record(workdir: Path, study: str, changes: list[str]) -> None:
    """Write `study.json` at the first start; later ones must be of the same study with the same changes.

    Raises:
      InputError: another study or other changes, which the runs that are done already would not have.
    """
    file, started = workdir / "study.json", {"study": study, "changes": sorted(changes)}
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir: {workdir} is a file; accepted: a folder, or a name for a new one")
    if not file.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(started, indent=1) + "\n")
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"--workdir: {file} is not valid JSON ({error})") from None
    if before != started:
        texts = [" ".join([each["study"], *each["changes"]]) for each in (started, before)]
        raise InputError(
            f"--workdir: {workdir} was started otherwise: found {texts[0]}; accepted: {texts[1]}"
        )


def is_done(command: str, run: Path) -> bool:
    """Whether a run went through a command: trained to its final line, or with a report newer than its training."""
    metrics, report = run / "metrics.jsonl", run / "report" / f"{command}.json"
    if command == "train":
        lines = read_metrics(metrics)
        return bool(lines) and lines[-1].get("final", False)
    return report.exists() and report.stat().st_mtime >= metrics.stat().st_mtime


def _call(command: str, *arguments: str) -> int:
    """Run a command of this package in a process of its own, so that no run sees what another left in memory.

    Signals to this process are passed on, and the command's exit code is awaited: a run that is told to stop saves first.
    """
    called = [sys.executable, "-m", f"crate_jax.{command}", *arguments]
    # In a session of its own, Ctrl-C on a terminal reaches it once, through this process.
    with subprocess.Popen(called, start_new_session=True) as process:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {
            number: signal.signal(number, lambda *_: process.send_signal(signal.SIGTERM))
            for number in numbers
        }
        code = process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        what = "was stopped" if code == cli.STOPPED else f"failed with exit code {code}"
        message = f"{command} {' '.join(arguments)} {what}; start the study again to go on from there"
        print(message, file=sys.stderr, flush=True)
    return code if code in (cli.BAD_INPUT, cli.STOPPED) or not code else cli.FAILED


if __name__ == "__main__":
    cli.run(main, Flags)
