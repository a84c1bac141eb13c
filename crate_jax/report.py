"""Run a study: train (and probe) its models one after the other, then draw what they say together."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

from crate_jax import InputError
from crate_jax.analysis import ablation, scaling
from crate_jax.runs import cli
from crate_jax.runs.console import console, wide_table
from crate_jax.runs.metrics import read_metrics, write_atomically

# A study is read as its name says.
ANALYSES = {"scaling": scaling, "ablation": ablation}

USAGE = "python -m crate_jax.report --config=configs/igpt.py:scaling --workdir=runs/scaling"


def main(argv: list[str]) -> None:
    """`--config=FILE.py:STUDY --workdir=DIR [--config.KEY=VALUE …]`; what is done already is not done again, and the changes
    are those of the first start.
    """
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in argv[1:] if "=" in argument)
    unknown = [argument for argument in argv[1:] if not argument.startswith(("--config", "--workdir="))]
    if unknown or not {"config", "workdir"} <= set(flags):
        raise InputError(f"{unknown[0] + ': ' if unknown else ''}accepted: {USAGE}")
    file, _, study = flags["config"].partition(":")
    if not Path(file).is_file():
        raise InputError(f"--config: no file {file}; accepted: {USAGE}")
    studies = runpy.run_path(file).get("STUDIES", {})
    if study not in studies:
        raise InputError(
            f"--config: {file} has no study {study!r}; accepted: {', '.join(studies) or 'none there'}"
        )
    analysis = ANALYSES[study]
    changes = [argument for argument in argv[1:] if argument.startswith("--config.")]
    workdir, names = Path(flags["workdir"]), list(studies[study])
    record(workdir, study, changes)
    for name in names:
        run = workdir / name
        if not is_trained(run):
            console.print(f"training {study}/{name}")
            _call("train", f"--config={file}:{study}/{name}", f"--workdir={run}", *changes)
        if "probe" in analysis.COMMANDS and not is_probed(run):
            _call("probe", f"--workdir={run}")
    rows = analysis.read(workdir, names)
    picture = analysis.write(rows, workdir)
    wide_table(f"{study}: {len(names)} runs", list(analysis.HEADERS), [row.cells() for row in rows])
    console.print(f"written: {picture}")


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


def is_trained(run: Path) -> bool:
    """Whether the run has its final line."""
    lines = read_metrics(run / "metrics.jsonl")
    return bool(lines) and lines[-1].get("final", False)


def is_probed(run: Path) -> bool:
    """Whether the probe of the run is newer than its metrics."""
    probe, metrics = run / "report" / "probe.json", run / "metrics.jsonl"
    return probe.exists() and probe.stat().st_mtime >= metrics.stat().st_mtime


def _call(command: str, *arguments: str) -> None:
    """Run a command of this package in a process of its own, so that no run sees what another left in memory."""
    done = subprocess.run([sys.executable, "-m", f"crate_jax.{command}", *arguments], check=False)
    if done.returncode:
        raise InputError(f"{command} {' '.join(arguments)} failed; start the study again to go on from there")


if __name__ == "__main__":
    cli.run(main, joins=False)
