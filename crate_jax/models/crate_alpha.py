"""CRATE-α: the white-box transformer that scales (arXiv 2405.20299), as released (github.com/UCSC-VLAA/CRATE-alpha).

CRATE's block with another sparsification, ODL: an overcomplete dictionary D, another one D̂ to leave it, and a skip:
    Z½ = Z + MSSA(LN(Z)),   Z' = Z½ + z² D̂ᵀ,   z² two ISTA steps from zero on ½‖LN(Z½) − z Dᵀ‖² + λ‖z‖₁, z ≥ 0.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
from flax import nnx

from crate_jax import objectives
from crate_jax.models.images import ImageClassifier, ImageConfig
from crate_jax.models.layers import Dense, PatchProjection, layer_norm, uniform_init
from crate_jax.models.operators import MSSA
from crate_jax.settings import one_of, setting

# name: (dim, depth, heads, patch size of the published models)
SIZES = {
    "tiny": (192, 12, 3, 16),
    "small": (576, 12, 12, 16),
    "base": (768, 12, 12, 16),
    "large": (1024, 24, 16, 14),
    "huge": (1280, 32, 16, 14),
}
# As released: that of flax, not of PyTorch.
EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class CRATEAlphaConfig(ImageConfig):
    """All that determines a CRATE-α. The dictionaries are `dim` × `overcomplete`·`dim`; `step_size` is η, `penalty` λ.

    `mssa_std` is the standard deviation that MSSA's matrices start with, 0.02 as released; None: uniform, as in CRATE.
    """

    family: str = "crate_alpha"
    overcomplete: int = setting(4, "Atoms of a dictionary per feature.", least=1)
    step_size: float = setting(0.1, "Step size η of ISTA.", least=0)
    penalty: float = setting(0.1, "Sparsity penalty λ of ISTA.", least=0)
    mssa_std: float | None = setting(
        None, "Standard deviation that MSSA's matrices start with; left out: uniform, as in CRATE.", above=0
    )


def crate_alpha(size: str, **overrides) -> CRATEAlphaConfig:
    """The configuration of a published size, which starts as released.

    Args:
      size: tiny, small, base, large or huge: 4,811,944, 40,975,912, 72,328,936, 253,650,920 and 526,819,560 parameters at
        224 px, patch 16 (14 for large and huge), 1000 classes.
      **overrides: any field of `CRATEAlphaConfig`.
    Raises:
      InputError: another size.
    """
    one_of("size of CRATE-α", size, SIZES)
    dim, depth, heads, patch_size = SIZES[size]
    published = {"dim": dim, "depth": depth, "heads": heads, "patch_size": patch_size, "mssa_std": 0.02}
    return CRATEAlphaConfig(**{**published, **overrides})


class ODL(nnx.Module):
    """Overcomplete dictionary learning: x → z² D̂ᵀ, returned with the codes z²; see `objectives.overcomplete_block`."""

    def __init__(self, config: CRATEAlphaConfig, *, rngs: nnx.Rngs):
        self.step_size, self.penalty, self.dtype = config.step_size, config.penalty, config.compute_dtype
        shape, init = (config.dim, config.overcomplete * config.dim), uniform_init((6 / config.dim) ** 0.5)
        self.dictionary = nnx.Param(init(rngs.params(), shape))
        self.decoder = nnx.Param(init(rngs.params(), shape))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        constants = {"step_size": self.step_size, "penalty": self.penalty}
        codes = objectives.ista(x.astype(self.dtype), self.dictionary[...], steps=2, **constants)
        return codes @ self.decoder[...].astype(self.dtype).T, codes


class CRATEAlphaBlock(nnx.Module):
    """One MSSA step and one ODL step; its intermediates are those of `crate.CRATEBlock`, `ista_out` being the codes."""

    def __init__(self, config: CRATEAlphaConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"eps": EPS, "dtype": config.compute_dtype, "rngs": rngs}
        self.mssa_norm = layer_norm(config.dim, **options)
        self.mssa = MSSA(config, use_bias=False, stddev=config.mssa_std, rngs=rngs)
        self.odl_norm = layer_norm(config.dim, **options)
        self.odl = ODL(config, rngs=rngs)

    def __call__(
        self,
        z: jax.Array,
        *,
        return_intermediates: bool = False,
        real: int | None = None,
        wanted: int | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        normed = self.mssa_norm(z)
        update = self.mssa(normed, real=real, wanted=wanted)
        compressed = z[:, :wanted] + update
        odl_in = self.odl_norm(compressed)
        decoded, codes = self.odl(odl_in)
        out = compressed + decoded
        if not return_intermediates:
            return out, {}
        after = self.mssa_norm(compressed)
        seen = self.mssa.intermediates(z, normed, update, compressed, after)
        seen["mssa_undone"] = compressed - self.mssa(after)
        sparse = {"ista_in": odl_in, "ista_out": codes, "dictionary": self.odl.dictionary[...]}
        return out, {**seen, **sparse, "out": out, "out_normed": self.mssa_norm(out)}


class CRATEAlpha(ImageClassifier):
    """Image classifier: linear patch embedding, class token, CRATE-α blocks, LayerNorm and linear head.

    Called with images `[b, h, w, c]`; returns `(logits [b, num_classes] float32, trace)`.
    """

    def __init__(self, config: CRATEAlphaConfig, rngs: nnx.Rngs):
        super().__init__(
            config,
            rngs,
            embed=partial(PatchProjection, config.patch_size, config.channels, config.dim, gain=2.0),
            make_block=partial(CRATEAlphaBlock, config),
            make_norm=partial(layer_norm, config.dim, eps=EPS),
            make_head=partial(Dense, (config.dim,), (config.num_classes,), stddev=0.02, use_bias=True),
            class_std=1e-6,
            position_std=0.02,
        )
