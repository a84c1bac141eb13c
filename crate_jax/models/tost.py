"""ToST: the token statistics transformer (Wu et al., arXiv 2412.17810), whose attention is linear in the tokens.

Its attention is a gradient step on an upper bound of the coding rate that knows the tokens by their second moments alone
(`objectives.token_statistics_coding_rate`), so no token is compared with another. The MLP is kept:
    Z ← Z + γ₁ TSSA(LN(Z)),   Z ← Z + γ₂ MLP(LN(Z)).
Blocks as released (github.com/RobinWu218/ToST, vision). The released classifier cuts patches by strided convolutions with
batch norm, has Fourier positions and two layers of class attention; here patches are projected linearly, positions are
learned, and the head reads the mean of the tokens, as is linear too.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from crate_jax.models.images import ImageClassifier, ImageConfig
from crate_jax.models.layers import Dense, PatchProjection, layer_norm
from crate_jax.models.vit import EPS, MLP
from crate_jax.settings import one_of, setting

# name: (dim, depth, heads, the γ that layers start from)
SIZES = {"tiny": (192, 12, 4, 1.0), "small": (384, 12, 8, 1.0), "medium": (512, 24, 8, 1e-5)}


@dataclasses.dataclass(frozen=True)
class ToSTConfig(ImageConfig):
    """All that determines a ToST. `layer_scale` is what γ₁ and γ₂ start from."""

    family: str = "tost"
    pool: str = "mean"
    mlp_ratio: float = setting(4.0, "Width of the MLP over that of the tokens.", above=0)
    layer_scale: float = setting(1.0, "What γ₁ and γ₂ start from.", least=0)

    @property
    def has_attention(self) -> bool:
        """Token statistics compare no tokens, so no kernel computes them."""
        return False


def tost(size: str, **overrides) -> ToSTConfig:
    """The configuration of a published width and depth.

    Args:
      size: tiny, small or medium.
      **overrides: any field of `ToSTConfig`.
    Raises:
      InputError: another size.
    """
    one_of("size of ToST", size, SIZES)
    dim, depth, heads, scale = SIZES[size]
    return ToSTConfig(**{"dim": dim, "depth": depth, "heads": heads, "layer_scale": scale, **overrides})


class TSSA(nnx.Module):
    """Token statistics self-attention: −Σ_k (Π_k W_k) ⊙ 1/(1 + m_k) O_k + b, linear in the n tokens.

    W_k = Z U_k; m_k = Σ_i Π_ik W_ik² / Σ_i Π_ik, the second moments of head k; Π = softmax over heads k of
    τ_k Σ_j W_ikj² / Σ_i W_ikj², the membership of token i. `bases` U `[k, d, p]`, `output` O `[k, p, d]`, `temperature` τ.
    """

    def __init__(self, config: ToSTConfig, *, rngs: nnx.Rngs):
        dim, heads, head_dim = config.dim, config.heads, config.head_dim
        self.dtype = config.compute_dtype
        kernel = nnx.initializers.truncated_normal(0.02)
        self.bases = nnx.Param(kernel(rngs.params(), (heads, dim, head_dim)))
        self.base_bias = nnx.Param(jnp.zeros((heads, 1, head_dim)))
        self.output = nnx.Param(kernel(rngs.params(), (heads, head_dim, dim)))
        self.bias = nnx.Param(jnp.zeros(dim))
        self.temperature = nnx.Param(jnp.ones(heads))

    def __call__(self, z: jax.Array) -> jax.Array:
        bases, output, bias = (p[...].astype(self.dtype) for p in (self.bases, self.output, self.bias))
        w = jnp.einsum("bnd,kdp->bknp", z.astype(self.dtype), bases) + self.base_bias[...].astype(self.dtype)
        squares = jnp.square(w.astype(jnp.float32))
        share = squares / jnp.maximum(jnp.sum(squares, axis=2, keepdims=True), 1e-24)
        scores = jnp.sum(share, axis=-1) * self.temperature[...][:, None]
        membership = jax.nn.softmax(scores, axis=1)[..., None]
        weights = membership / (jnp.sum(membership, axis=2, keepdims=True) + 1e-8)
        moments = jnp.sum(weights * squares, axis=2, keepdims=True)
        mixed = w * (-membership / (1 + moments)).astype(self.dtype)
        return jnp.einsum("bknp,kpd->bnd", mixed, output) + bias


class ToSTBlock(nnx.Module):
    """TSSA and MLP, each on the normed tokens, scaled by a learned vector and added."""

    def __init__(self, config: ToSTConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"eps": EPS, "dtype": config.compute_dtype, "rngs": rngs}
        self.tssa_norm = layer_norm(config.dim, **options)
        self.tssa = TSSA(config, rngs=rngs)
        self.mlp_norm = layer_norm(config.dim, **options)
        self.mlp = MLP(config.dim, config.mlp_ratio, dtype=config.compute_dtype, rngs=rngs)
        self.tssa_scale, self.mlp_scale = (
            nnx.Param(jnp.full(config.dim, config.layer_scale)) for _ in range(2)
        )

    def __call__(
        self,
        z: jax.Array,
        *,
        return_intermediates: bool = False,
        real: int | None = None,
        wanted: int | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        tssa_scale, mlp_scale = (p[...].astype(z.dtype) for p in (self.tssa_scale, self.mlp_scale))
        normed = self.tssa_norm(z)
        compressed = (z + tssa_scale * self.tssa(normed))[:, :wanted]
        out = compressed + mlp_scale * self.mlp(self.mlp_norm(compressed))
        if not return_intermediates:
            return out, {}
        return out, {"normed": normed, "attention_in": z, "attention_out": compressed, "out": out}


class ToST(ImageClassifier):
    """Image classifier: linear patch embedding, ToST blocks, LayerNorm and linear head, by default on the mean of tokens.

    Called with images `[b, h, w, c]`; returns `(logits [b, num_classes] float32, trace)`.
    """

    def __init__(self, config: ToSTConfig, rngs: nnx.Rngs):
        super().__init__(
            config,
            rngs,
            embed=partial(PatchProjection, config.patch_size, config.channels, config.dim, gain=1 / 3),
            make_block=partial(ToSTBlock, config),
            make_norm=partial(layer_norm, config.dim, eps=EPS),
            make_head=partial(Dense, (config.dim,), (config.num_classes,), stddev=0.0, use_bias=True),
            class_std=0.02,
            position_std=0.02,
        )
