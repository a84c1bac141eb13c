"""The optimisers: each is a dataclass of its settings, which makes the optax transformation, and a row of OPTIMIZERS.

Weight decay is decoupled: it is multiplied by the learning rate and never enters the gradient's moments.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import optax

from crate_jax import settings
from crate_jax.settings import setting

# Adafactor keeps the row and column means of g² of matrices at least this wide; heads are 48 to 64 wide.
MIN_FACTORED = 32
MOMENTUM_DTYPES = ("float32", "bfloat16")

# What weight decay is given as: a number or its schedule, and which parameters it applies to.
Decay = dict[str, Any]


def _named(pattern: str) -> Callable[[str], bool]:
    return lambda path: re.search(pattern, path) is not None


_TOKEN = _named(r"(position_embedding|class_token|mask_token)$")
_DICTIONARY = _named(r"/(dictionary|decoder)$")
_UNTRAINED = _named(r"fixed_output$")

# `decay`: whether weight decay applies to a parameter, by its path and by whether the model counts it among its matrices.
DECAYED: dict[str, Callable[[str, bool], bool]] = {
    "matrices": lambda path, matrix: matrix,
    # Positions and tokens too, as where everything of more than one dimension is decayed: in PyTorch they are [1, n, d].
    "matrices and tokens": lambda path, matrix: matrix or _TOKEN(path),
    "matrices but dictionaries": lambda path, matrix: matrix and not _DICTIONARY(path),
    "all": lambda path, matrix: not _UNTRAINED(path),
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """What every optimiser has: the learning rate, weight decay, and how large a gradient may be.

    The rate goes from `start_lr` to `lr` during the warm-up in a straight line, then along a cosine to `end_lr`.
    """

    name: str = setting("", "The optimiser: lion, adamw, adafactor or sgd; each has settings of its own.")
    lr: float = setting(2e-4, "Learning rate at its highest.", least=0)
    start_lr: float = setting(0.0, "Learning rate at the first step of the warm-up.", least=0)
    end_lr: float = setting(0.0, "Learning rate at the end of the run.", least=0)
    schedule: str = setting(
        "steps",
        "When the learning rate changes: every step, or once per epoch with a cosine that counts from the first step.",
        choices=("steps", "epochs"),
    )
    weight_decay: float = setting(0.05, "Decoupled weight decay, multiplied by the learning rate.", least=0)
    weight_decay_end: float | None = setting(
        None, "Where a cosine takes the weight decay by the end; left out: it stays.", least=0
    )
    decay: str = setting("matrices", "Which parameters are decayed.", choices=DECAYED)
    clip_norm: float | None = setting(
        None, "Largest global norm of the gradient; left out: not clipped.", above=0
    )
    clip_parameter_norm: float | None = setting(
        None, "Largest norm of the gradient of any one parameter; left out: not clipped.", above=0
    )

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
    b1: float = setting(0.9, "Share of the momentum in an update's sign.", least=0, below=1)
    b2: float = setting(0.99, "Decay of the momentum.", least=0, below=1)
    momentum_dtype: str = setting(
        "float32", "Type of the momentum; bfloat16 halves its memory.", choices=MOMENTUM_DTYPES
    )

    def transformation(self, schedule, decay):
        return optax.lion(schedule, self.b1, self.b2, mu_dtype=self.momentum_dtype, **decay)


@dataclasses.dataclass(frozen=True)
class AdamW(OptimizerConfig):
    """AdamW (arXiv 1711.05101): Adam with decoupled weight decay. Keeps two numbers per parameter."""

    name: str = "adamw"
    b1: float = setting(0.9, "Decay of the first moment.", least=0, below=1)
    b2: float = setting(0.999, "Decay of the second moment.", least=0, below=1)
    momentum_dtype: str = setting(
        "float32", "Type of the first moment; bfloat16 halves its memory.", choices=MOMENTUM_DTYPES
    )

    def transformation(self, schedule, decay):
        return optax.adamw(schedule, self.b1, self.b2, mu_dtype=self.momentum_dtype, **decay)


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


def kind_of(values: Mapping[str, Any]) -> type[OptimizerConfig]:
    """The class of the optimiser that plain values name; Lion where they name none.

    Raises:
      InputError: an unknown name.
    """
    name = values.get("name", "lion")
    settings.one_of("optimizer.name", name, OPTIMIZERS)
    return OPTIMIZERS[name]


def replace(config: OptimizerConfig, name: str, **changes) -> OptimizerConfig:
    """Another optimiser: it keeps the settings that every optimiser has; its own are at their defaults, or as given."""
    if name == config.name:
        return dataclasses.replace(config, **changes)
    shared = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(OptimizerConfig)
        if field.name != "name"
    }
    return kind_of({"name": name})(**{**shared, **changes})


def without_foreign(values: Mapping[str, Any]) -> dict[str, Any]:
    """The optimiser of a run as it was once saved, without what that optimiser does not have and never used."""
    known = {field.name for field in dataclasses.fields(kind_of(values))}
    return {key: value for key, value in values.items() if key in known or key not in FORMERLY_SHARED}
