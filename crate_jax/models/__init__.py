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
from typing import NamedTuple

from crate_jax.models import trace
from crate_jax.models.config import ConfigT, Images, ModelConfig, resolve
from crate_jax.models.crate import CRATE, CRATEConfig, crate
from crate_jax.models.crate_alpha import CRATEAlpha, CRATEAlphaConfig, crate_alpha
from crate_jax.models.crate_mae import CRATEMAE, CRATEMAEConfig, crate_mae
from crate_jax.models.gpt import CRATEGPT, IGPT, MASKED, CRATEGPTConfig, IGPTConfig, TokenConfig, igpt
from crate_jax.models.images import ImageConfig, at_resolution, resize_positions
from crate_jax.models.model import Cache, Model, Module, Params
from crate_jax.models.operators import CRATELayers
from crate_jax.models.stack import Block, Intermediates, Trace
from crate_jax.models.tost import ToST, ToSTConfig, tost
from crate_jax.models.vit import ViT, ViTConfig, vit


class Family(NamedTuple):
    """A kind of model: its configuration, its module, and what can be read off each of its layers."""

    config: type[ModelConfig]
    module: type[Module]
    readings: (
        Callable[[Intermediates], Intermediates] | None
    )  # `trace=` for the layer-wise measurements; None: a black box.


FAMILIES = {
    "crate": Family(CRATEConfig, CRATE, trace.readings),
    "crate_alpha": Family(CRATEAlphaConfig, CRATEAlpha, trace.readings),
    "crate_gpt": Family(CRATEGPTConfig, CRATEGPT, trace.readings),
    "crate_mae": Family(CRATEMAEConfig, CRATEMAE, trace.readings),
    "igpt": Family(IGPTConfig, IGPT, None),
    "tost": Family(ToSTConfig, ToST, None),
    "vit": Family(ViTConfig, ViT, None),
}


def create(config: ConfigT, platform: str | None = None, *, deterministic: bool = False) -> Model[ConfigT]:
    """The model that a configuration of one of the FAMILIES describes.

    Args:
      config: the configuration; kept as it is, `auto` in it is decided for `model.resolved`.
      platform: of the devices the model will run on (see `resolve`); by default that of the process.
      deterministic: whether it must give the same bits every time, on a GPU too.
    Raises:
      InputError: a configuration that describes no model, or none that runs there.
    """
    family = FAMILIES[config.family]
    return Model(config, family.module, family.readings, platform, deterministic=deterministic)


__all__ = [
    "CRATE",
    "CRATEGPT",
    "CRATEMAE",
    "FAMILIES",
    "IGPT",
    "MASKED",
    "Block",
    "CRATEAlpha",
    "CRATEAlphaConfig",
    "CRATEConfig",
    "CRATEGPTConfig",
    "CRATELayers",
    "CRATEMAEConfig",
    "Cache",
    "Family",
    "IGPTConfig",
    "ImageConfig",
    "Images",
    "Intermediates",
    "Model",
    "ModelConfig",
    "Module",
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
    "resolve",
    "tost",
    "vit",
]
