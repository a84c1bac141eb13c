"""Run a study: train and probe its models one after the other, then draw what they say together."""

import runpy
import subprocess
import sys
from pathlib import Path

from crate_jax import InputError
from crate_jax.analysis import scaling
from crate_jax.training import cli
from crate_jax.training.console import console, wide_table

USAGE = "python -m crate_jax.report --config=configs/igpt.py:scaling --workdir=runs/scaling"


def main(argv: list[str]) -> None:
    """`--config=FILE.py:STUDY --workdir=DIR [--config.KEY=VALUE …]`; what is done already is not done again."""
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
    changes = [argument for argument in argv[1:] if argument.startswith("--config.")]
    workdir = Path(flags["workdir"])
    for name in studies[study]:
        run = workdir / name
        if not scaling.is_trained(run):
            console.print(f"training {study}/{name}")
            _call("train", f"--config={file}:{study}/{name}", f"--workdir={run}", *changes)
        if not scaling.is_probed(run):
            _call("probe", f"--workdir={run}")
    rows = [scaling.summarise(workdir / name, name) for name in studies[study]]
    picture = scaling.write(rows, workdir)
    wide_table(
        f"{study}: {len(rows)} runs",
        [
            "run",
            "parameters",
            "epochs",
            "train nats",
            "test nats",
            "bits a pixel",
            "best layer",
            "probe %",
            "untrained %",
        ],
        [
            [
                row.name,
                f"{row.num_params:,}",
                f"{row.epochs:.3g}",
                f"{row.train_loss:.4f}",
                f"{row.test_loss:.4f}",
                f"{row.bits_per_pixel:.4f}",
                row.best_layer,
                f"{100 * row.probe:.2f}",
                f"{100 * row.untrained:.2f}",
            ]
            for row in rows
        ],
    )
    console.print(f"written: {picture}")


def _call(command: str, *arguments: str) -> None:
    """Run a command of this package in a process of its own, so that no run sees what another left in memory."""
    done = subprocess.run([sys.executable, "-m", f"crate_jax.{command}", *arguments], check=False)
    if done.returncode:
        raise InputError(f"{command} {' '.join(arguments)} failed; start the study again to go on from there")


if __name__ == "__main__":
    cli.run(main, joins=False)
