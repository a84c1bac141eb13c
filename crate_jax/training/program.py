"""The training step as a program for the run's mesh, before any array exists."""

import dataclasses

import jax
import optax

from crate_jax import models
from crate_jax.parallel import flops
from crate_jax.parallel.sharding import batch_sharding, replicated
from crate_jax.training import state, steps
from crate_jax.training.run import Run
from crate_jax.training.state import TrainState


def lower(
    run: Run, tx: optax.GradientTransformation, batch: dict[str, jax.ShapeDtypeStruct], *, log_steps: int
) -> tuple[TrainState, jax.stages.Lowered]:
    """The state's shapes and shardings, and the training step lowered for them; to be called with the mesh set.

    Args:
      run: model, task, mesh.
      tx: the optimiser.
      batch: shapes and types of one process's or of a whole batch; its leading length does not count.
      log_steps: metrics are summed over so many steps.
    """
    config, mesh = run.config, run.mesh
    batch = {
        name: jax.ShapeDtypeStruct(
            (config.batch_size, *value.shape[1:]), value.dtype, sharding=batch_sharding(mesh)
        )
        for name, value in batch.items()
    }
    names = steps.metric_names(run.model, run.task, batch)
    abstract = state.abstract_state(run.model, tx, mesh, ema=config.ema_decay > 0, metric_names=names)
    step = steps.make_train_step(
        run.model, run.task, tx, config, log_steps=log_steps, total_steps=run.steps(config.total)
    )
    shardings = state.shardings_of(abstract)
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    return abstract, step.lower(abstract, batch)


def matmul_flops(run: Run, params, batch: dict[str, jax.ShapeDtypeStruct]) -> int:
    """Flops of the matrix products of a step's losses and gradients, on all devices together. Nothing is computed.

    Products that rematerialisation computes once more are left out: they are no part of what a step is worth.

    Args:
      run: model, task, batch size.
      params: the parameters or their shapes.
      batch: as for `lower`.
    """
    model = run.model
    if hasattr(model.config, "remat"):
        model = models.create(dataclasses.replace(model.config, remat="none"))
    batch = {
        name: jax.ShapeDtypeStruct((run.config.batch_size, *value.shape[1:]), value.dtype)
        for name, value in batch.items()
    }
    return flops.matmul_flops(
        lambda params, batch: steps.loss_and_grad(
            model, run.task, params, batch, jax.random.key(0), ema=params
        ),
        params,
        batch,
    )


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that a device needs; donated arguments count once, for their outputs live in the same place."""
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return peak + memory.output_size_in_bytes - memory.alias_size_in_bytes
