"""CRATE: the white-box transformer of Yu et al. 2023 (arXiv 2306.01129), as released and as derived.

A block is one step of compression and one of sparsification on the sparse rate reduction objective:
    Z½ = Z + MSSA(LN(Z)),   Z' = ISTA(LN(Z½))      (no skip connection around ISTA).
The fields of `CRATELayers` switch single pieces of it back to the theory, or to variants of it.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
from flax import nnx

from crate_jax import InputError
from crate_jax.models.images import ImageClassifier, ImageConfig
from crate_jax.models.layers import ISTA, MSSA, PatchEmbed, choose, layer_norm, linear, number, scalar

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


@dataclasses.dataclass(frozen=True)
class CRATELayers:
    """What determines the blocks of a CRATE, next to their width; the default values are the released model.

    `step_size` is η and `penalty` λ of the ISTA step, `compression_step` κ of the MSSA step; `learn_steps` makes parameters
    of the three, in each layer. `eps_sq` is ε² in the factors p/(N ε²) and d/(N ε²) of the derivation, N the number of
    tokens. The choices of `output`, `attention` and `ista` (with `ista_steps`) are listed at `layers.MSSA` and
    `layers.ISTA`, those of `update` at UPDATES.
    """

    head_dim: int = 64
    step_size: float = 0.1
    penalty: float = 0.1
    compression_step: float = 1.0
    learn_steps: bool = False
    eps_sq: float = 0.5
    output: str = "free"
    update: str = "skip"
    attention: str = "softmax"
    ista: str = "released"
    ista_steps: int = 2


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
    if size not in SIZES:
        raise InputError(f"size of CRATE: found {size!r}; accepted: {', '.join(SIZES)}")
    dim, heads, head_dim, depth = SIZES[size]
    return CRATEConfig(**{"dim": dim, "heads": heads, "head_dim": head_dim, "depth": depth, **overrides})


class CRATEBlock(nnx.Module):
    """One MSSA step and one ISTA step; returns the tokens and what `crate_jax.models.trace` reads.

    Args:
      config: any configuration with the fields of `CRATELayers`, and `dim`, `heads` and `sequence_length`.
      causal: whether a token sees only itself and those before it.
    """

    def __init__(self, config: Any, *, causal: bool = False, dtype, rngs: nnx.Rngs):
        choose("model.update", config.update, UPDATES)
        self.dtype, self.update = dtype, config.update
        options = {"dtype": dtype, "rngs": rngs}
        theory = {"num_tokens": config.sequence_length, "eps_sq": config.eps_sq}
        self.mssa_norm = layer_norm(config.dim, **options)
        self.mssa = MSSA(
            config.dim,
            config.heads,
            config.head_dim,
            output=config.output,
            attention=config.attention,
            causal=causal,
            **theory,
            **options,
        )
        self.compression_step = scalar(config.compression_step, learned=config.learn_steps)
        self.ista_norm = layer_norm(config.dim, **options)
        self.ista = ISTA(
            config.dim,
            step_size=config.step_size,
            penalty=config.penalty,
            form=config.ista,
            steps=config.ista_steps,
            learned=config.learn_steps,
            **theory,
            **options,
        )

    def __call__(self, z: jax.Array, *, report: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        normed = self.mssa_norm(z)
        update = self.mssa(normed)
        compressed = self._join(z, update)
        sparse = self.ista(self.ista_norm(compressed))
        if not report:
            return sparse, {}
        return sparse, {
            "normed": normed,
            "mssa_in": z,
            "mssa_update": update,
            "mssa_out": compressed,
            "ista_out": sparse,
            "out": sparse,
            "bases": self.mssa.bases[...],
            "subspace_in": self.mssa.project(normed),
            "subspace_out": self.mssa.project(self.mssa_norm(compressed)),
        }

    def decode(self, z: jax.Array, cache: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The block on one token `[b, d]`, given those before it (see `MSSA.decode`)."""
        update, cache = self.mssa.decode(self.mssa_norm(z), cache, position)
        return self.ista(self.ista_norm(self._join(z, update)[:, None]))[:, 0], cache

    def _join(self, z: jax.Array, update: jax.Array) -> jax.Array:
        return UPDATES[self.update](z, update, number(self.compression_step), self.mssa.beta).astype(
            self.dtype
        )


class CRATE(ImageClassifier):
    """Image classifier: patch embedding, class token, CRATE blocks, LayerNorm and linear head on the class token.

    Called with images `[b, h, w, c]`; returns `(logits [b, num_classes] float32, trace)`.
    """

    def __init__(self, config: CRATEConfig, rngs: nnx.Rngs):
        super().__init__(
            config,
            rngs,
            embed=partial(PatchEmbed, config.patch_size, config.channels, config.dim),
            make_block=partial(CRATEBlock, config),
            make_norm=partial(layer_norm, config.dim),
            make_head=partial(linear, config.dim, config.num_classes),
            class_std=1.0,
            position_std=1.0,
        )
