"""Train a model; started again with the same workdir it goes on where it stopped.

    python -m crate_jax.train --config=configs/base.py --workdir=runs/base
    python -m crate_jax.train --config=configs/igpt.py:crate --config.optimizer.lr=1e-3 --config.total_epochs=5

SIGTERM or Ctrl-C saves the run and ends with exit code 75: start it again to go on.
"""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

from crate_jax.analysis import layerwise
from crate_jax.data import subset
from crate_jax.models import Params
from crate_jax.parallel import processes
from crate_jax.reports.writing import chosen, write_report
from crate_jax.runs import cli, ownership
from crate_jax.runs import workdir as workdirs
from crate_jax.runs.config import Config
from crate_jax.runs.console import console, table
from crate_jax.settings import setting
from crate_jax.training import loop
from crate_jax.training.building import Run
from crate_jax.training.opening import Opened
from crate_jax.training.starting import start_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(cli.ConfigFlags, processes.JobFlags):
    """Those of a configuration and of a job, and what is reported at the end."""

    sections: str | None = setting(
        None, "Sections of the report to make, separated by commas; left out: all that apply."
    )


def main(argv: list[str]) -> int | None:
    flags, config, path, overrides = cli.parse_config_file(argv, Flags)
    return cli.STOPPED if train(config, path, overrides, flags.sections) is None else None


def train(
    config: Config, path: Path, overrides: Collection[str] = (), sections: str | None = None
) -> dict[str, float] | None:
    """Run a configuration to its end and report, or until SIGTERM or Ctrl-C.

    Args:
      config: the run.
      path: the workdir; made if it is not there, continued if it is.
      overrides: dotted keys that the user set by hand (see `fit_to_data`).
      sections: names of the report's sections, separated by commas; None: all.
    Returns:
      the final evaluation, or None when the run was stopped by a signal; its state is then saved.
    Raises:
      InputError: bad input, found before training starts (an unreadable image: when it is read); or another run owns the
        folder.
      FloatingPointError: the loss or a gradient was not finite.
    """
    wanted = chosen(sections)
    run = start_run(config, Path(path), overrides)
    workdirs.check(run.workdir, run.config, run.info)
    with ownership.owned(run.workdir):
        result = loop.train(run, layer_readers(run))
        if result.stopped:
            console.print(
                f"stopped and saved at step {int(result.state.step)} of {run.steps(run.config.total)}; "
                f"to resume, start again with --workdir={run.workdir}",
            )
            return None
        report(Opened(run, result.state.eval_params, int(result.state.step)), result.values, wanted)
        return result.values


def layer_readers(run: Run) -> list[loop.Reader]:
    """The layer-wise measurements of one batch of held-out examples, the same at every reading; none of a black box."""
    if run.model.readings is None:
        return []
    read = layerwise.make_reader(run.model, run.task, run.mesh)
    sample = run.data.eval_batches(subset.spread(run.data.source("test"), run.config.batch_size))

    def measure(params: Params) -> dict[str, float]:
        return layerwise.as_metrics(layerwise.measure(read, params, sample, run.mesh))

    return [loop.Reader(run.config.trace, measure)]


def report(opened: Opened, values: dict[str, float], sections: Sequence[str]) -> None:
    """Make the report of a run that has just ended, and print its final evaluation."""
    rows = {
        name.removeprefix("eval/"): f"{value:.4f}"
        for name, value in values.items()
        if "position/" not in name
    }
    rows["count"] = f"{values['eval/count']:.0f} examples"
    rows |= write_report(opened, sections).written
    table("test set, last parameters", {**rows, "metrics": opened.run.workdir / "metrics.jsonl"})


if __name__ == "__main__":
    cli.run(main, Flags)
