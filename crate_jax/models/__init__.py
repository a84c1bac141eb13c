"""Models as Flax NNX modules, and as `init`/`apply` over plain dicts of arrays.

>>> import jax
>>> from crate_jax import models
>>> model = models.create(models.crate("tiny", image_size=32, patch_size=8, num_classes=10))
>>> params = model.init(jax.random.key(0))
>>> logits, _ = model.apply(params, jax.numpy.zeros((1, 32, 32, 3)))
>>> logits.shape
(1, 10)
"""

from crate_jax.models.crate import CRATE, CRATEConfig, crate
from crate_jax.models.model import Model, Params

# family: (configuration, module)
FAMILIES = {"crate": (CRATEConfig, CRATE)}


def create(config) -> Model:
    """The model that a configuration of one of the FAMILIES describes."""
    return Model(config, FAMILIES[config.family][1])


__all__ = ["CRATE", "FAMILIES", "CRATEConfig", "Model", "Params", "crate", "create"]
