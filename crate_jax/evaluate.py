"""Evaluate a trained run: accuracy, top-5, loss and the layer-wise table, on its own test split or on other data.

    python -m crate_jax.evaluate --workdir=runs/base
    python -m crate_jax.evaluate --workdir=runs/base --config.data.name=folder:PATH

Writes report/evaluate.json in the run's folder.
"""

import dataclasses
import json
from pathlib import Path

import jax

from crate_jax import InputError
from crate_jax.analysis import layerwise
from crate_jax.data import real, sources, subset
from crate_jax.parallel import processes
from crate_jax.runs import cli
from crate_jax.runs.console import table, wide_table
from crate_jax.runs.metrics import write_if_possible
from crate_jax.settings import setting
from crate_jax.training import evaluation, steps
from crate_jax.training.building import Run
from crate_jax.training.opening import open_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(cli.WorkdirFlags, processes.JobFlags):
    """Those of a run and of a job, and the other labels of ImageNet."""

    real_labels: Path | None = setting(None, "ImageNet's ReaL labels, a real.json, beside the ordinary ones.")


def main(argv: list[str]) -> None:
    flags, config, path, overrides = cli.parse_workdir(argv, Flags)
    run, params, step = open_run(path, flags.checkpoint, config=config, overrides=overrides)
    source = run.data.source("test")
    if flags.real_labels is not None:
        source = with_real_labels(run, flags.real_labels)
    with jax.set_mesh(run.mesh):
        batches = run.data.eval_batches(source)
        eval_step = steps.make_eval_step(run.model, run.task, run.mesh, run.compiler_options)
        values = evaluation.evaluate(eval_step, params, batches, run.mesh)
        layers = None
        if run.model.readings is not None:
            sample = run.data.eval_batches(subset.spread(source, layerwise.MAX_EXAMPLES))
            layers = layerwise.measure(
                layerwise.make_reader(run.model, run.task, run.mesh), params, sample, run.mesh
            )
    report = {
        "step": step,
        "data": run.config.data.name,
        **{f"eval/{name}": value for name, value in values.items()},
    }
    rows = {
        name: f"{value:.4f}"
        for name, value in values.items()
        if name != "count" and not name.startswith("position/")
    }
    table(
        f"{run.workdir} at step {step} on {run.config.data.name}",
        {**rows, "examples": f"{values['count']:.0f}"},
    )
    if layers is not None:
        wide_table(
            "layer by layer (mean ± standard deviation over examples)",
            ["layer", *(layerwise.READ[name] for name in layers)],
            [
                [layer + 1, *(f"{v['mean'][layer]:.3f} ± {v['std'][layer]:.3f}" for v in layers.values())]
                for layer in range(run.model.config.depth)
            ],
        )
    write_if_possible(
        run.workdir / "report" / "evaluate.json", json.dumps({**report, "layers": layers}, indent=1) + "\n"
    )


def with_real_labels(run: Run, file: Path) -> sources.Source:
    """The test images with their ReaL labels beside the ordinary ones, see `data.real`.

    Raises:
      InputError: a run of another task, or a file that is not ReaL's.
    """
    data = run.config.data
    if run.config.task != "classify":
        raise InputError(f"--real_labels: found a run with task {run.config.task}; accepted: classify")
    source = real.Labelled(run.data.source("test", fitted=False), real.load(file))
    return sources.Fitted(source, data.image_size, data.channels, data.eval_resize, data.stretch)


if __name__ == "__main__":
    cli.run(main, Flags)
