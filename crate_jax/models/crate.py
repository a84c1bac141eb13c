"""CRATE: the white-box transformer of Yu et al. 2023 (arXiv 2306.01129), as released and as derived.

A block is one step of compression and one of sparsification on the sparse rate reduction objective:
    Z½ = Z + MSSA(LN(Z)),   Z' = ISTA(LN(Z½))      (no skip connection around ISTA).
The fields of `operators.CRATELayers` switch single pieces of it back to the theory, or to variants of it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import jax
from flax import nnx

from crate_jax.models.config import ModelConfig
from crate_jax.models.images import ImageClassifier, ImageConfig
from crate_jax.models.layers import Dropout, PatchEmbed, drop, layer_norm, linear, number, scalar
from crate_jax.models.operators import ISTA, MSSA, CRATELayers
from crate_jax.settings import one_of

# name: (dim, heads, head_dim, depth), arXiv 2306.01129 table 1. Small's heads are 48 wide, not 64.
SIZES = {
    "tiny": (384, 6, 64, 12),
    "small": (576, 12, 48, 12),
    "base": (768, 12, 64, 12),
    "large": (1024, 16, 64, 24),
}

# How the update joins the tokens: (tokens Z, update, κ, β = p/(N ε²)) → Z½.
UPDATES = {
    "skip": lambda z, update, kappa, beta: z + kappa * update,  # As released.
    "negative": lambda z, update, kappa, beta: z - kappa * update,
    "derived": lambda z, update, kappa, beta: (1 - kappa * beta) * z + kappa * beta * update,  # Eq. 11.
}
# The same solved for the tokens Z: (Z½, an update like that which led there, κ, β) → Z.
UNDONE = {
    "skip": lambda z, update, kappa, beta: z - kappa * update,
    "negative": lambda z, update, kappa, beta: z + kappa * update,
    "derived": lambda z, update, kappa, beta: (z - kappa * beta * update) / (1 - kappa * beta),
}


@dataclasses.dataclass(frozen=True)
class CRATEConfig(CRATELayers, ImageConfig):
    """All that determines a CRATE."""

    family: str = "crate"


def crate(size: str, **overrides) -> CRATEConfig:
    """The configuration of a published size.

    Args:
      size: tiny, small, base or large: 6.1M, 13.1M, 22.8M, 77.6M parameters at 224 px, patch 16, 1000 classes.
      **overrides: any field of `CRATEConfig`.
    Raises:
      InputError: another size.
    """
    one_of("size of CRATE", size, SIZES)
    dim, heads, head_dim, depth = SIZES[size]
    return CRATEConfig(**{"dim": dim, "heads": heads, "head_dim": head_dim, "depth": depth, **overrides})


class CRATEBlock(nnx.Module):
    """One MSSA step and one ISTA step; its intermediates are what `crate_jax.models.trace` reads.

    Args:
      config: the model; its widths and types.
      layers: the switches.
      causal: whether a token sees only itself and those before it.
    """

    def __init__(self, config: ModelConfig, layers: CRATELayers, *, causal: bool = False, rngs: nnx.Rngs):
        one_of("model.update", layers.update, UPDATES)
        self.dtype, self.update = config.compute_dtype, layers.update
        self.mssa_norm = layer_norm(config.dim, dtype=self.dtype, rngs=rngs)
        self.mssa = MSSA(config, layers, causal=causal, rngs=rngs)
        self.compression_step = scalar(layers.compression_step, learned=layers.learn_steps)
        self.ista_norm = layer_norm(config.dim, dtype=self.dtype, rngs=rngs)
        self.ista = ISTA(config, layers, rngs=rngs)

    def __call__(
        self,
        z: jax.Array,
        *,
        return_intermediates: bool = False,
        real: int | None = None,
        wanted: int | None = None,
        dropout: Dropout | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        normed = self.mssa_norm(z)
        update = drop(self.mssa(normed, real=real, wanted=wanted), dropout)
        compressed = self._join(z[:, :wanted], update)
        ista_in = self.ista_norm(compressed)
        sparse = self.ista(ista_in)
        if not return_intermediates:
            return sparse, {}
        after = self.mssa_norm(compressed)
        seen = self.mssa.intermediates(z, normed, update, compressed, after)
        undone = self._join(compressed, self.mssa(after), UNDONE)
        codes = {"ista_in": ista_in, "ista_out": sparse, "dictionary": self.ista.dictionary[...]}
        out = {"out": sparse, "out_normed": self.mssa_norm(sparse)}
        return sparse, {**seen, "mssa_undone": undone, **codes, **out}

    def decode(self, z: jax.Array, cache: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The block on one token `[b, d]`, given those before it (see `MSSA.decode`)."""
        update, cache = self.mssa.decode(self.mssa_norm(z), cache, position)
        return self.ista(self.ista_norm(self._join(z, update)[:, None]))[:, 0], cache

    def _join(self, z: jax.Array, update: jax.Array, forms: Mapping[str, Callable] = UPDATES) -> jax.Array:
        return forms[self.update](z, update, number(self.compression_step), self.mssa.beta).astype(self.dtype)


class CRATE(ImageClassifier):
    """Image classifier: patch embedding, class token, CRATE blocks, LayerNorm and linear head on the class token.

    Called with images `[b, h, w, c]`; returns `(logits [b, num_classes] float32, trace)`.
    """

    def __init__(self, config: CRATEConfig, rngs: nnx.Rngs):
        super().__init__(
            config,
            rngs,
            embed=partial(PatchEmbed, config.patch_size, config.channels, config.dim),
            make_block=partial(CRATEBlock, config, config),
            make_norm=partial(layer_norm, config.dim),
            make_head=partial(linear, config.dim, config.num_classes),
            class_std=1.0,
            position_std=1.0,
        )
