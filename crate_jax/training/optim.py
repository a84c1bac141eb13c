"""Optimisers (optax) with the masks and the schedule of the papers."""

import jax
import jax.numpy as jnp
import optax

from crate_jax import InputError
from crate_jax.models.partition import is_decayed
from crate_jax.runs.config import OptimizerConfig
from crate_jax.settings import one_of

# Adafactor keeps the row and column means of g² of matrices at least so wide; heads are 48 to 64 wide.
MIN_FACTORED = 32


def decay_mask(params) -> dict:
    """True for each parameter that weight decay applies to, by `models.partition.RULES`.

    Raises:
      InputError: a large parameter that the rules do not name.
    """

    def decayed(path, leaf):
        return is_decayed(
            jax.tree_util.keystr(path, simple=True, separator="/"), leaf.size * leaf.dtype.itemsize
        )

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_schedule(lr: float, *, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear from 0 to `lr` over `warmup_steps`, then cosine to 0 at `total_steps`.

    Raises:
      InputError: a warm-up as long as the run.
    """
    if warmup_steps >= total_steps:
        raise InputError(
            f"warmup: {warmup_steps} steps; accepted: fewer than the {total_steps} of the whole run"
        )
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup_steps else lr, lr, warmup_steps=warmup_steps, decay_steps=total_steps
    )


def make_ema_schedule(decay: float, end: float | None, *, total_steps: int) -> optax.Schedule:
    """The decay of the moving average: from `decay` to `end` along a cosine, e − (e − d)(1 + cos(π t/T))/2; without an end
    the same throughout.
    """
    if end is None:
        return optax.constant_schedule(decay)
    return lambda step: end - (end - decay) * (1 + jnp.cos(jnp.pi * step / total_steps)) / 2


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser of a config; weight decay is decoupled (multiplied by the learning rate, never by the gradient).

    What it keeps of a parameter, in float32: Lion one number, AdamW two, SGD none, Adafactor none to speak of (a row and a
    column of a matrix). `momentum_dtype` bfloat16 halves the first moment of Lion and AdamW.

    Raises:
      InputError: an unknown name or type of momentum.
    """
    decay = {"weight_decay": config.weight_decay, "mask": decay_mask}
    if config.momentum_dtype not in ("float32", "bfloat16"):
        raise InputError(
            f"optimizer.momentum_dtype: found {config.momentum_dtype!r}; accepted: float32, bfloat16"
        )
    moments = {"b1": config.b1, "b2": config.b2, "mu_dtype": config.momentum_dtype}
    makers = {
        "lion": lambda: optax.lion(schedule, **moments, **decay),
        "adamw": lambda: optax.adamw(schedule, **moments, **decay),
        "adafactor": lambda: optax.chain(
            # Without momentum, and with the learning rate as the size of a step (not relative to the parameter's).
            optax.scale_by_factored_rms(min_dim_size_to_factor=MIN_FACTORED),
            optax.clip_by_block_rms(1.0),
            optax.add_decayed_weights(**decay),
            optax.scale_by_learning_rate(schedule),
        ),
        "sgd": lambda: optax.chain(optax.add_decayed_weights(**decay), optax.sgd(schedule)),
    }
    one_of("optimizer.name", config.name, makers)
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    return optax.chain(*clip, makers[config.name]())
