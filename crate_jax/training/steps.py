"""The jitted functions of a run: the training step, the evaluation step."""

from collections.abc import Callable, Mapping
from functools import partial

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from crate_jax.models import Model
from crate_jax.parallel.sharding import replicated
from crate_jax.runs.config import Config
from crate_jax.tasks import Batch, Metrics, Task
from crate_jax.training.optim import cosine_between
from crate_jax.training.state import TrainState

# Metrics that every task has, next to its own.
COMMON_METRICS = ("loss", "grad_norm")


def loss_and_grad(
    model: Model, task: Task, params, batch: Batch, key: jax.Array, accumulate: int = 1, ema=None
):
    """Loss, metrics and gradients of a batch, averaged over `accumulate` slices taken one after the other.

    `ema`, the averaged parameters, are those of the teacher if the task has one.

    Returns:
      `((loss, metrics), grads)`.
    """

    def loss_fn(params, batch, key):
        return _loss(model, task, params, ema, batch, key)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulate == 1:
        return grad_fn(params, batch, key)
    slices = _slices(batch, accumulate)

    def add(total, i):
        part = grad_fn(params, slices(i), jax.random.fold_in(key, i))
        return jax.tree.map(jnp.add, total, part), None

    shapes = jax.eval_shape(grad_fn, params, slices(0), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, jnp.arange(accumulate))
    return jax.tree.map(lambda x: x / accumulate, total)


def _slices(batch: Batch, count: int) -> Callable[[int | jax.Array], Batch]:
    """The slices of a batch by number: slice i is every `count`-th example from i on.

    So each device finds its part of every slice in its own part of the batch and nothing moves.
    """
    split = jax.tree.map(lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]), batch)
    return lambda i: jax.tree.map(lambda x: x[:, i], split)


def _loss(model: Model, task: Task, params, ema, batch: Batch, key: jax.Array):
    teacher = {"teacher": partial(model.apply, ema)} if task.teacher else {}
    return task.loss(partial(model.apply, params), batch, key, **teacher)


def make_train_step(
    model: Model,
    task: Task,
    tx: optax.GradientTransformation,
    config: Config,
    *,
    log_steps: int,
    total_steps: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step(state, batch) -> (state, report)`, to be jitted with a donated state.

    `report` holds the sums of the metrics since the last log, `halted` and the step number reached. It is not part of the
    donated state, so the host may read it while later steps run.
    """

    average = cosine_between(config.ema_decay, config.ema_decay_end, total_steps=total_steps)

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        (loss, metrics), grads = loss_and_grad(
            model, task, state.params, batch, key, config.accumulate, state.ema
        )
        chex.assert_shape([loss, *metrics.values()], ())
        chex.assert_trees_all_equal_shapes_and_dtypes(grads, state.params)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - average(state.step))
        keep = jnp.where(state.step % log_steps == 0, 0.0, 1.0)
        metrics = {"loss": loss, "grad_norm": grad_norm, **metrics}
        # In float32 whatever a metric is (float64 under jax_enable_x64): the state keeps its types from step to step.
        sums = {name: keep * state.sums[name] + value.astype(jnp.float32) for name, value in metrics.items()}
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & ~state.halted
        moved = TrainState(state.step + 1, params, opt_state, ema, sums, state.halted)
        state = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, state)
        state = TrainState(state.step, state.params, state.opt_state, state.ema, state.sums, ~good)
        # Copies, because the originals are given away to the next step.
        report = {"sums": jax.tree.map(jnp.copy, state.sums), "halted": ~good, "step": state.step + 0}
        return state, report

    return train_step


def metric_names(model: Model, task: Task, batch) -> tuple[str, ...]:
    """Names of the metrics of the training step, found by shape inference."""
    # Nothing is computed, not even the key: the mesh may be one of devices that are only described.
    _, metrics = jax.eval_shape(
        lambda params, batch: _loss(model, task, params, params, batch, jax.random.key(0)),
        model.abstract_params,
        batch,
    )
    return (*COMMON_METRICS, *metrics)


def make_eval_step(
    model: Model, task: Task, mesh: Mesh, compiler_options: Mapping[str, bool] | None = None
) -> Callable:
    """`eval_step(params, batch)` returns the task's metrics of the unmasked examples, and their number as `count`, on every
    process: each a sum and its weight, see `tasks.base.Metrics`. `compiler_options` are those of the run.
    """

    def eval_step(params, batch: Batch) -> Metrics:
        metrics = task.evaluate(partial(model.apply, params), batch)
        return {**metrics, "count": (jnp.sum(batch["mask"]), None)}

    return jax.jit(eval_step, out_shardings=replicated(mesh), compiler_options=dict(compiler_options or {}))


def find_nonfinite(
    model: Model, task: Task, params, ema, batch: Batch, key: jax.Array, mesh: Mesh, *, accumulate: int = 1
) -> str:
    """Where the first non-finite number of a training step appears, in words, following the forward pass.

    It looks at one slice of the batch after the other, as the step does: the whole may not fit.
    """

    def finite(tree):
        return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), tree)

    @partial(jax.jit, out_shardings=replicated(mesh))
    def look(params, ema, batch):
        slices = _slices(batch, accumulate)

        def forward(i):
            output, trace = model.apply(
                params,
                task.inputs(slices(i)),
                trace=lambda report: {k: jnp.all(jnp.isfinite(v)) for k, v in report.items()},
            )
            return trace, jnp.all(jnp.stack(jax.tree.leaves(finite(output))))

        seen = jax.lax.map(forward, jnp.arange(accumulate))
        trace, output_ok = jax.tree.map(lambda ok: jnp.all(ok, axis=0), seen)
        (loss, _), grads = loss_and_grad(model, task, params, batch, key, accumulate, ema)
        return finite(params), trace, output_ok, jnp.isfinite(loss), finite(grads)

    params_ok, trace_ok, output_ok, loss_ok, grads_ok = jax.device_get(look(params, ema, batch))
    for layer in range(len(next(iter(trace_ok.values())))):
        for name, ok in trace_ok.items():
            if not ok[layer]:
                return f"layer {layer:02d} ({name})"
    if not output_ok:
        return "the model's output"
    if not loss_ok:
        return "the loss"
    for what, tree in (("gradient of", grads_ok), ("parameter", params_ok)):
        for path, ok in jax.tree_util.tree_leaves_with_path(tree):
            if not ok:
                return f"{what} {jax.tree_util.keystr(path, simple=True, separator='/')}"
    return "the gradient norm"


def find_unusable(state: TrainState, mesh: Mesh) -> str | None:
    """The first parameter, or average of one, that is not finite; None where all are."""
    kept = {"params": state.params, "ema": state.ema}

    @partial(jax.jit, out_shardings=replicated(mesh))
    def look(kept):
        return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), kept)

    for path, ok in jax.tree_util.tree_leaves_with_path(jax.device_get(look(kept))):
        if not ok:
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return None
