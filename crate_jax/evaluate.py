"""Evaluate a trained run: accuracy, top-5, loss and the layer-wise table, on its own test split or on other data."""

import json

import jax

from crate_jax.analysis import layerwise
from crate_jax.training import cli, evaluation, steps
from crate_jax.training.console import table, wide_table
from crate_jax.training.metrics import write_atomically
from crate_jax.training.restore import open_run


def main(argv: list[str]) -> None:
    config, path, overrides = cli.parse_workdir(argv)
    run, params, step = open_run(config, path, overrides)
    with jax.set_mesh(run.mesh):
        batches = run.eval_batches(run.source("test"))
        eval_step = steps.make_eval_step(run.model, run.task, run.mesh)
        values = evaluation.evaluate(eval_step, params, batches, run.mesh)
        layers = None
        if run.model.readings is not None:
            layers = layerwise.measure(
                layerwise.make_reader(run.model, run.task, run.mesh), params, batches, run.mesh
            )
    report = {
        "step": step,
        "data": run.config.data.name,
        **{f"eval/{name}": value for name, value in values.items()},
    }
    write_atomically(
        run.workdir / "report" / "evaluate.json", json.dumps({**report, "layers": layers}, indent=1) + "\n"
    )
    rows = {name: f"{value:.4f}" for name, value in values.items() if name != "count"}
    table(
        f"{run.workdir} at step {step} on {run.config.data.name}",
        {**rows, "examples": f"{values['count']:.0f}"},
    )
    if layers is not None:
        wide_table(
            "layer by layer (mean ± standard deviation over examples)",
            ["layer", *(name.replace("_", " ") for name in layers)],
            [
                [layer + 1, *(f"{v['mean'][layer]:.3f} ± {v['std'][layer]:.3f}" for v in layers.values())]
                for layer in range(run.model.config.depth)
            ],
        )


if __name__ == "__main__":
    cli.run(main)
