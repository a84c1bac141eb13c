"""Train a model; started again with the same workdir it goes on where it stopped."""

import json
from collections.abc import Collection
from functools import partial
from pathlib import Path

import jax

from crate_jax.analysis import figures, layerwise
from crate_jax.data import subset
from crate_jax.models import Params
from crate_jax.parallel import processes
from crate_jax.parallel.sharding import MeshConfig, make_mesh, replicated, tree_shardings
from crate_jax.runs import cli
from crate_jax.runs.config import Config
from crate_jax.runs.console import console, table
from crate_jax.runs.metrics import read_metrics, write_atomically
from crate_jax.training import loop, throughput
from crate_jax.training.building import Run
from crate_jax.training.starting import start_run


def main(argv: list[str]) -> None:
    config, path, overrides = cli.parse_config_file(argv)
    train(config, path, overrides)


def train(config: Config, path: Path, overrides: Collection[str] = ()) -> dict[str, float] | None:
    """Run a configuration to its end and report, or until SIGTERM or Ctrl-C.

    Args:
      config: the run.
      path: the workdir; made if it is not there, continued if it is.
      overrides: dotted keys that the user set by hand (see `fit_to_data`).
    Returns:
      the final evaluation, or None when the run was stopped by a signal; its state is then saved.
    Raises:
      InputError: bad input, found before training starts (an unreadable image: when it is read).
      FloatingPointError: the loss or a gradient was not finite.
    """
    run = start_run(config, Path(path), overrides)
    if config.data.benchmark:
        table(f"input of {run.info.name}, {run.config.batch_size} examples a batch", throughput.measure(run))
        return None
    result = loop.train(run, layer_readers(run))
    if result.stopped:
        console.print(
            f"stopped and saved at step {int(result.state.step)} of {run.steps(run.config.total)}; "
            f"to resume, start again with --workdir={run.workdir}"
        )
        return None
    with jax.set_mesh(run.mesh):
        report(run, result.state.eval_params, result.values)
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


def report(run: Run, params: Params, values: dict[str, float]) -> None:
    """Draw what the run has learned, and print its final evaluation."""
    rows = {name.removeprefix("eval/"): f"{value:.4f}" for name, value in values.items()}
    rows["count"] = f"{values['eval/count']:.0f} examples"
    if run.model.readings is not None:
        rows["layers"] = _report_layers(run, params)
    metrics = run.workdir / "metrics.jsonl"
    title = f"{run.model.config.family} on {run.info.name}"
    figures.losses(read_metrics(metrics), run.workdir / "report" / "loss.png", title=title)
    rows |= _report_task(run, params, values)
    table("test set, last parameters", {**rows, "metrics": metrics})


def _report_layers(run: Run, params: Params) -> Path:
    """Write `report/layerwise.json` and `.png`: the parameters that training began with against those it ended with."""
    shardings = tree_shardings(run.model.abstract_params, run.mesh)
    initial = jax.jit(run.model.init, out_shardings=shardings)(jax.random.key(run.config.seed))
    read = layerwise.make_reader(run.model, run.task, run.mesh)
    sample = run.data.eval_batches(subset.spread(run.data.source("test"), layerwise.MAX_EXAMPLES))
    measured = {
        name: layerwise.measure(read, given, sample, run.mesh)
        for name, given in (("initial", initial), ("trained", params))
    }
    folder = run.workdir / "report"
    write_atomically(folder / "layerwise.json", json.dumps(measured, indent=1) + "\n")
    title = f"{run.model.config.family} on held-out {run.info.name}"
    figures.layerwise(**measured, path=folder / "layerwise.png", title=title)
    return folder / "layerwise.png"


def _report_task(run: Run, params: Params, values: dict[str, float]) -> dict[str, str]:
    """The task's own reports: of several processes the first makes them, on one device of its own."""
    mesh, rows = run.mesh, {}
    if processes.several():
        mesh = make_mesh(MeshConfig(), jax.local_devices()[:1])
        if run.task.show is not None:
            params = jax.jit(lambda params: params, out_shardings=replicated(run.mesh))(params)
            params = jax.tree.map(lambda leaf: leaf.addressable_data(0), params)
    if not processes.is_first():
        return rows
    test, folder = run.data.source("test"), run.workdir / "report"
    with jax.set_mesh(mesh):
        if run.task.report is not None:
            rows |= run.task.report(values, test, folder)
        if run.task.show is not None:
            rows |= run.task.show(partial(run.model.apply, params), test, folder)
    return rows


if __name__ == "__main__":
    cli.run(main)
