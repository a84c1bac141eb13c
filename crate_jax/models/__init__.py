"""Models as Flax NNX modules, and as `init`/`apply` over plain dicts of arrays.

>>> import jax
>>> from crate_jax import models
>>> model = models.create(models.crate("tiny", image_size=32, patch_size=8, num_classes=10))
>>> params = model.init(jax.random.key(0))
>>> logits, _ = model.apply(params, jax.numpy.zeros((1, 32, 32, 3)))
>>> logits.shape
(1, 10)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from crate_jax.models import trace
from crate_jax.models.crate import CRATE, CRATEConfig, crate
from crate_jax.models.crate_mae import CRATEMAE, CRATEMAEConfig, crate_mae
from crate_jax.models.gpt import CRATEGPT, IGPT, MASKED, CRATEGPTConfig, IGPTConfig, TokenConfig, igpt
from crate_jax.models.model import Images, Model, Params


class Family(NamedTuple):
    """A kind of model: its configuration, its module, and what can be read off each of its layers."""

    config: type
    module: type
    readings: Callable[[dict], dict] | None  # `trace=` for the layer-wise measurements; None: a black box.


FAMILIES = {
    "crate": Family(CRATEConfig, CRATE, trace.readings),
    "crate_gpt": Family(CRATEGPTConfig, CRATEGPT, trace.readings),
    "crate_mae": Family(CRATEMAEConfig, CRATEMAE, trace.readings),
    "igpt": Family(IGPTConfig, IGPT, None),
}


def create(config: Any) -> Model:
    """The model that a configuration of one of the FAMILIES describes."""
    family = FAMILIES[config.family]
    return Model(config, family.module, family.readings)


__all__ = [
    "CRATE",
    "CRATEGPT",
    "CRATEMAE",
    "FAMILIES",
    "IGPT",
    "MASKED",
    "CRATEConfig",
    "CRATEGPTConfig",
    "CRATEMAEConfig",
    "Family",
    "IGPTConfig",
    "Images",
    "Model",
    "Params",
    "TokenConfig",
    "crate",
    "crate_mae",
    "create",
    "igpt",
]
