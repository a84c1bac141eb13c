"""ViT (Dosovitskiy et al. 2020, arXiv 2010.11929), the black box that the white boxes are compared with, in timm's form:
    h ← h + Attention(LN(h)),   h ← h + W₂ gelu(W₁ LN(h)),
a class token, learned positions, biases everywhere.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from crate_jax.models.attention import attend
from crate_jax.models.images import ImageClassifier, ImageConfig
from crate_jax.models.layers import Dense, PatchProjection, gelu_dense, layer_norm, split_heads
from crate_jax.settings import one_of, setting

# name: (dim, depth, heads)
SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class ViTConfig(ImageConfig):
    """All that determines a ViT. The MLP is `mlp_ratio` times as wide as the tokens."""

    family: str = "vit"
    mlp_ratio: float = setting(4.0, "Width of the MLP over that of the tokens.", above=0)


def vit(size: str, **overrides) -> ViTConfig:
    """The configuration of a published size.

    Args:
      size: tiny, small, base or large: 5,717,416, 22,050,664, 86,567,656 and 304,326,632 parameters at 224 px, patch 16,
        1000 classes.
      **overrides: any field of `ViTConfig`.
    Raises:
      InputError: another size.
    """
    one_of("size of ViT", size, SIZES)
    dim, depth, heads = SIZES[size]
    return ViTConfig(**{"dim": dim, "depth": depth, "heads": heads, **overrides})


class MLP(nnx.Module):
    """W₂ gelu(W₁ x + b₁) + b₂, the exact gelu. Kernels start as N(0, 0.02²), biases at zero."""

    def __init__(self, dim: int, ratio: float, *, dtype, rngs: nnx.Rngs):
        options: dict[str, Any] = {"stddev": 0.02, "use_bias": True, "dtype": dtype, "rngs": rngs}
        hidden = round(ratio * dim)
        self.mlp_in = Dense((dim,), (hidden,), **options)
        self.mlp_out = Dense((hidden,), (dim,), **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.mlp_out(gelu_dense(self.mlp_in, x))


class ViTBlock(nnx.Module):
    """Attention and MLP, each on the normed residual stream and added to it."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": config.compute_dtype, "rngs": rngs}
        self.kernel = config.attention_kernel
        dense: dict[str, Any] = {"stddev": 0.02, "use_bias": True, **options}
        heads = (config.heads, config.head_dim)
        self.attention_norm = layer_norm(config.dim, eps=EPS, **options)
        self.qkv = Dense((config.dim,), (3, *heads), **dense)
        self.attention_output = Dense(heads, (config.dim,), **dense)
        self.mlp_norm = layer_norm(config.dim, eps=EPS, **options)
        self.mlp = MLP(config.dim, config.mlp_ratio, **options)

    def __call__(
        self,
        x: jax.Array,
        *,
        return_intermediates: bool = False,
        real: int | None = None,
        wanted: int | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        normed = self.attention_norm(x)
        query, key, value = split_heads(self.qkv(normed))
        kernel = (
            self.kernel if wanted is None else "xla"
        )  # Few queries: there is little to gain and padding to lose.
        mixed = attend(query[:, :wanted], key, value, real=real, kernel=kernel)
        attended = x[:, :wanted] + self.attention_output(mixed)
        out = attended + self.mlp(self.mlp_norm(attended))
        if not return_intermediates:
            return out, {}
        heads_first = {"query": jnp.swapaxes(query, 1, 2), "key": jnp.swapaxes(key, 1, 2)}
        stream = {"attention_in": x, "attention_out": attended, "out": out}
        return out, {"normed": normed, **heads_first, **stream}


class ViT(ImageClassifier):
    """Image classifier: linear patch embedding, class token, ViT blocks, LayerNorm and linear head on the class token.

    Called with images `[b, h, w, c]`; returns `(logits [b, num_classes] float32, trace)`.
    """

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        super().__init__(
            config,
            rngs,
            embed=partial(PatchProjection, config.patch_size, config.channels, config.dim, gain=1 / 3),
            make_block=partial(ViTBlock, config),
            make_norm=partial(layer_norm, config.dim, eps=EPS),
            make_head=partial(Dense, (config.dim,), (config.num_classes,), stddev=0.0, use_bias=True),
            class_std=1e-6,
            position_std=0.02,
        )
