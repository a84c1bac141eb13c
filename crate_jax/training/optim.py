"""Schedules, which parameters are decayed, and the optimiser of a run; the optimisers are in `runs.optimizers`."""

import jax
import jax.numpy as jnp
import optax

from crate_jax import InputError, settings
from crate_jax.models.partition import is_decayed
from crate_jax.runs.optimizers import DECAYED, OptimizerConfig


def decay_mask(params, which: str = "matrices") -> dict:
    """True for each parameter that weight decay applies to.

    Args:
      params: the parameters.
      which: a row of `runs.optimizers.DECAYED`.
    Raises:
      InputError: a large parameter that `models.partition.RULES` does not name.
    """

    def decayed(path, leaf):
        return DECAYED[which](_name(path), is_decayed(_name(path), leaf.size * leaf.dtype.itemsize))

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_schedule(
    config: OptimizerConfig, *, warmup_steps: int, total_steps: int, steps_per_epoch: float | None = None
) -> optax.Schedule:
    """The learning rate by step: from `start_lr` to `lr` in a straight line, then along a cosine to `end_lr`.

    With `schedule="epochs"` the rate changes once per epoch, and the cosine counts from the first step, the warm-up being
    its upper bound, as timm and the authors of CRATE have it; else the cosine starts when the warm-up ends.

    Args:
      config: of the optimiser.
      warmup_steps: length of the warm-up.
      total_steps: of the whole run.
      steps_per_epoch: needed for `schedule="epochs"`.
    Raises:
      InputError: a warm-up as long as the run, or a start without one.
    """
    if warmup_steps >= total_steps:
        raise InputError(
            f"warmup: {warmup_steps} steps; accepted: fewer than the {total_steps} of the whole run"
        )
    if config.start_lr and not warmup_steps and total_steps > 1:
        raise InputError(
            f"optimizer.start_lr: found {config.start_lr} without a warm-up; accepted: 0, or a warm-up of one step or more"
        )
    if config.schedule == "epochs":
        return _per_epoch(config, warmup_steps, total_steps, steps_per_epoch)
    start = config.start_lr if warmup_steps else config.lr
    return optax.warmup_cosine_decay_schedule(start, config.lr, warmup_steps, total_steps, config.end_lr)


def _per_epoch(
    config: OptimizerConfig, warmup_steps: int, total_steps: int, steps_per_epoch: float
) -> optax.Schedule:
    warmup = optax.linear_schedule(config.start_lr, config.lr, warmup_steps)
    share = config.end_lr / config.lr if config.lr else 0.0
    cosine = optax.cosine_decay_schedule(config.lr, total_steps, share)

    def schedule(step):
        step = jnp.floor(step / steps_per_epoch) * steps_per_epoch
        return jnp.minimum(warmup(step), cosine(step)) if warmup_steps else cosine(step)

    return schedule


def cosine_between(start: float, end: float | None, *, total_steps: int) -> optax.Schedule:
    """From `start` to `end` along a cosine, e − (e − s)(1 + cos(π t/T))/2; without an end the same throughout.

    The decay of the moving average and the weight decay may follow it.
    """
    if end is None:
        return optax.constant_schedule(start)
    return lambda step: end - (end - start) * (1 + jnp.cos(jnp.pi * step / total_steps)) / 2


def clip_by_parameter_norm(max_norm: float) -> optax.GradientTransformation:
    """Each parameter's gradient is scaled down to `max_norm` where its norm is larger; each layer of a stack on its own."""

    def clip(path, grad):
        axes = tuple(range("/blocks/" in f"/{_name(path)}", grad.ndim))
        norm = jnp.sqrt(jnp.sum(jnp.square(grad), axes, keepdims=True))
        return grad * jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-6))

    return optax.stateless(lambda grads, _: jax.tree_util.tree_map_with_path(clip, grads))


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, *, total_steps: int | None = None
) -> optax.GradientTransformation:
    """The optimiser of a run: gradients clipped, then as the optimiser's own dataclass says.

    Args:
      config: of the optimiser.
      schedule: the learning rate by step.
      total_steps: of the whole run, needed for `weight_decay_end`.
    Raises:
      InputError: a setting that is not accepted.
    """
    settings.check(config, "optimizer.")
    decay = config.weight_decay
    if config.weight_decay_end is not None:
        decay = cosine_between(decay, config.weight_decay_end, total_steps=total_steps)
    clip = []
    if config.clip_parameter_norm is not None:
        clip.append(clip_by_parameter_norm(config.clip_parameter_norm))
    if config.clip_norm is not None:
        clip.append(optax.clip_by_global_norm(config.clip_norm))
    mask = lambda params: decay_mask(params, config.decay)  # noqa: E731
    return optax.chain(*clip, config.transformation(schedule, {"weight_decay": decay, "mask": mask}))


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
