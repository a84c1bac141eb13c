"""The table before step 1: what will run, where, and whether it fits."""

import jax

from crate_jax.parallel.sharding import bytes_per_device
from crate_jax.runs import console
from crate_jax.training.building import Run
from crate_jax.training.program import peak_bytes
from crate_jax.training.state import TrainState, shardings_of


def print_summary(
    run: Run, abstract: TrainState, compiled: jax.stages.Compiled, total_steps: int, start: int
) -> None:
    """Print model, data, mesh, memory a device, batch and steps.

    Args:
      abstract: shapes and shardings of the state.
      compiled: the training step.
      total_steps: of the whole run.
      start: the step that this start resumes from.
    """
    config, model = run.config, run.model.config
    held = {
        name: console.human_bytes(
            bytes_per_device(getattr(abstract, name), getattr(shardings_of(abstract), name))
        )
        for name in ("params", "opt_state")
    }
    optimizer = config.optimizer
    console.table(
        f"{model.family} on {run.info.name}",
        {
            "model": f"depth {model.depth}, dim {model.dim}, {model.heads} heads of {model.head_dim}",
            "parameters": f"{run.model.num_params:,}",
            "input": model.describe_input(),
            "examples": ", ".join(f"{count:,} {split}" for split, count in run.info.num_examples.items()),
            **_classes(run),
            "mesh": " × ".join(f"{name}={size}" for name, size in run.mesh.shape.items())
            + f" on {run.mesh.size} {jax.devices()[0].device_kind} device(s)",
            "memory a device": f"{console.human_bytes(peak_bytes(compiled))} at the peak, of which "
            f"parameters {held['params']} and optimiser {held['opt_state']}",
            "batch": f"{config.batch_size} in {config.accumulate} slice(s)",
            "steps": f"{total_steps:,}" + (f", resuming after {start:,}" if start else ""),
            "optimiser": f"{optimizer.name}, lr {optimizer.lr:g}, weight decay {optimizer.weight_decay:g}",
            "workdir": run.workdir,
        },
    )


def _classes(run: Run) -> dict[str, str]:
    """Their number and the first names, in the order of the labels; nothing for text."""
    names = run.info.class_names
    shown = f"{len(names):,}: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
    return {"classes": shown} if names else {}
