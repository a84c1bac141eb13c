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
from crate_jax.models.crate import CRATE, CRATEConfig, CRATELayers, crate
from crate_jax.models.crate_alpha import CRATEAlpha, CRATEAlphaConfig, crate_alpha
from crate_jax.models.crate_mae import CRATEMAE, CRATEMAEConfig, crate_mae
from crate_jax.models.gpt import CRATEGPT, IGPT, MASKED, CRATEGPTConfig, IGPTConfig, TokenConfig, igpt
from crate_jax.models.images import ImageConfig, at_resolution, resize_positions
from crate_jax.models.model import Images, Model, Params
from crate_jax.models.stack import Trace
from crate_jax.models.tost import ToST, ToSTConfig, tost
from crate_jax.models.vit import ViT, ViTConfig, vit


class Family(NamedTuple):
    """A kind of model: its configuration, its module, and what can be read off each of its layers."""

    config: type
    module: type
    readings: Callable[[dict], dict] | None  # `trace=` for the layer-wise measurements; None: a black box.


FAMILIES = {
    "crate": Family(CRATEConfig, CRATE, trace.readings),
    "crate_alpha": Family(CRATEAlphaConfig, CRATEAlpha, trace.readings),
    "crate_gpt": Family(CRATEGPTConfig, CRATEGPT, trace.readings),
    "crate_mae": Family(CRATEMAEConfig, CRATEMAE, trace.readings),
    "igpt": Family(IGPTConfig, IGPT, None),
    "tost": Family(ToSTConfig, ToST, None),
    "vit": Family(ViTConfig, ViT, None),
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
    "CRATEAlpha",
    "CRATEAlphaConfig",
    "CRATEConfig",
    "CRATEGPTConfig",
    "CRATELayers",
    "CRATEMAEConfig",
    "Family",
    "IGPTConfig",
    "ImageConfig",
    "Images",
    "Model",
    "Params",
    "ToST",
    "ToSTConfig",
    "TokenConfig",
    "Trace",
    "ViT",
    "ViTConfig",
    "at_resolution",
    "crate",
    "crate_alpha",
    "crate_mae",
    "create",
    "igpt",
    "resize_positions",
    "tost",
    "vit",
]
