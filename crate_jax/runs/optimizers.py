"""The optimisers: each is a dataclass of its settings, which makes the optax transformation, and a row of OPTIMIZERS.

Weight decay is decoupled: it is multiplied by the learning rate and never enters the gradient's moments.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import optax

from crate_jax import InputError

# Adafactor keeps the row and column means of g² of matrices at least this wide; heads are 48 to 64 wide.
MIN_FACTORED = 32

# What weight decay is given as: a number or its schedule, and which parameters it applies to.
Decay = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """What every optimiser has: the learning rate, weight decay, and how large a gradient may be.

    The rate goes from `start_lr` to `lr` during the warm-up in a straight line, then along a cosine to `end_lr`.
    """

    name: str = ""
    lr: float = 2e-4
    start_lr: float = 0.0  # Of the first step of a warm-up.
    end_lr: float = 0.0  # At the end of the run.
    schedule: str = "steps"  # The rate changes with every step, or once per epoch: "epochs".
    weight_decay: float = 0.05
    weight_decay_end: float | None = None  # Where a cosine takes it by the end of the run; None: it stays.
    decay: str = "matrices"  # What is decayed, see `training.optim.DECAYED`.
    clip_norm: float | None = None  # Largest norm of the whole gradient.
    clip_parameter_norm: float | None = None  # Largest norm of the gradient of any one parameter.

    def transformation(self, schedule: optax.Schedule, decay: Decay) -> optax.GradientTransformation:
        """The optax transformation from gradients to updates.

        Args:
          schedule: the learning rate by step.
          decay: keyword arguments `weight_decay` and `mask`, as optax takes them.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Lion(OptimizerConfig):
    """Lion (arXiv 2302.06675): the sign of a momentum. Keeps one number per parameter."""

    name: str = "lion"
    b1: float = 0.9
    b2: float = 0.99
    momentum_dtype: str = "float32"  # bfloat16 halves it.

    def transformation(self, schedule, decay):
        return optax.lion(schedule, self.b1, self.b2, mu_dtype=momentum_dtype(self), **decay)


@dataclasses.dataclass(frozen=True)
class AdamW(OptimizerConfig):
    """AdamW (arXiv 1711.05101): Adam with decoupled weight decay. Keeps two numbers per parameter."""

    name: str = "adamw"
    b1: float = 0.9
    b2: float = 0.999
    momentum_dtype: str = "float32"  # Of the first moment; bfloat16 halves it.

    def transformation(self, schedule, decay):
        return optax.adamw(schedule, self.b1, self.b2, mu_dtype=momentum_dtype(self), **decay)


@dataclasses.dataclass(frozen=True)
class Adafactor(OptimizerConfig):
    """Adafactor (arXiv 1804.04235) without momentum; `lr` is the size of a step and not relative to the parameter's.

    Keeps a row and a column per matrix.
    """

    name: str = "adafactor"

    def transformation(self, schedule, decay):
        return optax.chain(
            optax.scale_by_factored_rms(min_dim_size_to_factor=MIN_FACTORED),
            optax.clip_by_block_rms(1.0),
            optax.add_decayed_weights(**decay),
            optax.scale_by_learning_rate(schedule),
        )


@dataclasses.dataclass(frozen=True)
class SGD(OptimizerConfig):
    """Gradient descent without momentum. Keeps nothing."""

    name: str = "sgd"

    def transformation(self, schedule, decay):
        return optax.chain(optax.add_decayed_weights(**decay), optax.sgd(schedule))


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "lion": Lion,
    "adamw": AdamW,
    "adafactor": Adafactor,
    "sgd": SGD,
}

# Settings that configurations named for every optimiser before each had its own.
FORMERLY_SHARED = ("b1", "b2", "momentum_dtype")


def kind_of(name: Any) -> type[OptimizerConfig]:
    """The optimiser of this name.

    Raises:
      InputError: there is none.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer.name: found {name!r}; accepted: {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def replace(config: OptimizerConfig, name: str, **changes) -> OptimizerConfig:
    """Another optimiser: it keeps the settings that every optimiser has; its own are at their defaults, or as given."""
    shared = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(OptimizerConfig)
        if field.name != "name"
    }
    return kind_of(name)(**{**shared, **changes})


def without_foreign(values: Mapping[str, Any]) -> dict[str, Any]:
    """The optimiser of a run as it was once saved, without what that optimiser does not have and never used."""
    known = {field.name for field in dataclasses.fields(kind_of(values.get("name", "lion")))}
    return {key: value for key, value in values.items() if key in known or key not in FORMERLY_SHARED}


def momentum_dtype(config: Lion | AdamW) -> str:
    """The type of the first moment.

    Raises:
      InputError: an unknown one.
    """
    if config.momentum_dtype not in ("float32", "bfloat16"):
        raise InputError(
            f"optimizer.momentum_dtype: found {config.momentum_dtype!r}; accepted: float32, bfloat16"
        )
    return config.momentum_dtype
