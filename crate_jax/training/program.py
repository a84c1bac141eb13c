"""The training step as a program for the run's mesh, before any array exists."""

import dataclasses

import jax
import optax

from crate_jax import InputError
from crate_jax.parallel import chips, flops
from crate_jax.parallel.sharding import batch_sharding, replicated
from crate_jax.training import optim, state, steps
from crate_jax.training.building import Run
from crate_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled training step of a run, and what it was made of.

    Attributes:
      total_steps: the length of the run.
      log_steps: metrics are summed over so many steps.
      schedule: the learning rate by step.
      tx: the optimiser.
      abstract: shapes and shardings of the state.
      train_step: `train_step(state, batch) -> (state, report)`, which donates its state.
      step_flops: of its matrix products (see `matmul_flops`); not counted, and 0, where `peak_flops` is None.
      peak_flops: what all devices could do per second; None for a chip that we do not know.
    """

    total_steps: int
    log_steps: int
    schedule: optax.Schedule
    tx: optax.GradientTransformation
    abstract: TrainState
    train_step: jax.stages.Compiled
    step_flops: int
    peak_flops: float | None

    def initial_state(self, run: Run) -> TrainState:
        """The state that the run's seed gives."""
        return state.make_state(run.model, self.tx, jax.random.key(run.config.seed), self.abstract)


def compile_program(run: Run, batch: dict) -> Program:
    """The program of a run, compiled ahead of time, so that its memory is known before step 1; call it with the mesh set.

    Args:
      run: the run.
      batch: arrays, or their shapes and types, of one example or more; the leading length does not count.
    Raises:
      InputError: a run without a length, an optimiser or a schedule that does not exist.
    """
    config, total_steps = run.config, run.steps(run.config.total)
    if total_steps < 1:
        raise InputError("config: the run has no length; give total_epochs, total_steps or total_examples")
    log_steps = run.steps(config.log) or total_steps
    schedule = make_schedule(run)
    tx = optim.make_optimizer(config.optimizer, schedule, total_steps=total_steps)
    abstract, lowered = lower(run, tx, batch, log_steps=log_steps)
    chip = chips.find(run.mesh.devices.flat[0].device_kind)
    step_flops = matmul_flops(run, abstract.params, batch) if chip else 0
    peak_flops = chip and chip.peak_flops * run.mesh.size
    return Program(total_steps, log_steps, schedule, tx, abstract, lowered.compile(), step_flops, peak_flops)


def make_schedule(run: Run) -> optax.Schedule:
    """The learning rate of a run by step.

    Raises:
      InputError: a warm-up as long as the run.
    """
    config, total_steps, warmup_steps = run.config, run.steps(run.config.total), run.steps(run.config.warmup)
    if config.warmup is not None and config.warmup.unit == "percent" and config.warmup.value < 100:
        # At least one step, but a part of a run is never all of it: a run of one step has none.
        warmup_steps = min(warmup_steps, total_steps - 1)
    return optim.make_schedule(
        config.optimizer,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        steps_per_epoch=run.info.num_examples["train"] / config.batch_size,
    )


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
    step = jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
        compiler_options=run.compiler_options,
    )
    return abstract, step.lower(abstract, batch)


def matmul_flops(run: Run, params, batch: dict[str, jax.ShapeDtypeStruct]) -> int:
    """Flops of the matrix products of a step's losses and gradients, on all devices together. Nothing is computed.

    Products that rematerialisation computes once more are left out: they are no part of what a step is worth. Those of
    attention are counted as XLA's form has them, whatever kernel runs: inside of a library's call none can be seen.

    Args:
      run: model, task, batch size.
      params: the parameters or their shapes.
      batch: as for `lower`.
    """
    if hasattr(run.config.model, "remat"):
        model = dataclasses.replace(run.config.model, remat="none", attention_kernel="xla")
        run = dataclasses.replace(run, config=dataclasses.replace(run.config, model=model))
    batch = {
        name: jax.ShapeDtypeStruct((run.config.batch_size, *value.shape[1:]), value.dtype)
        for name, value in batch.items()
    }
    return flops.matmul_flops(
        lambda params, batch: steps.loss_and_grad(
            run.model, run.task, params, batch, jax.random.key(0), ema=params
        ),
        params,
        batch,
    )


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that a device needs; donated arguments count once, for their outputs live in the same place."""
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return peak + memory.output_size_in_bytes - memory.alias_size_in_bytes
