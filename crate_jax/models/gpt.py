"""iGPT: the next-pixel transformer of Chen et al. 2020, as released (github.com/openai/image-gpt), and CRATE-GPT.

Both predict every token of an image from those before it in raster order, or with `causal=False` the masked tokens from
all others (the BERT objective). They differ in their blocks alone: iGPT's are
    h ← h + Attention(norm(h)),   h ← h + W₂ φ(W₁ norm(h)),   norm(x) = g·x / √(mean x² + ε),   φ(x) = x σ(1.702 x),
CRATE-GPT's are causal MSSA and ISTA (see `crate_jax.models.crate`).
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from crate_jax import InputError
from crate_jax.models.attention import attend, attend_cached, cache_token
from crate_jax.models.config import Images, ModelConfig
from crate_jax.models.crate import CRATEBlock
from crate_jax.models.layers import Dense, Dropout, RMSNorm, drop, layer_norm, normal_param, split_heads
from crate_jax.models.operators import CRATELayers
from crate_jax.models.stack import CausalBlock, Stack, Trace
from crate_jax.settings import one_of, setting

# name: (dim, depth, heads). The heads of XL were not published; 16 follow L.
SIZES = {"s": (512, 24, 8), "m": (1024, 36, 8), "l": (1536, 48, 16), "xl": (3072, 60, 16)}

# A masked token: its embedding is zero.
MASKED = -1


@dataclasses.dataclass(frozen=True)
class TokenConfig(ModelConfig):
    """What every model of an image's tokens has. `num_classes=0` means no classification head."""

    vocab_size: int = setting(512, "Number of different tokens.", least=1)
    num_positions: int = setting(1024, "Length of a sequence, in tokens.", least=1)
    num_classes: int = setting(0, "Outputs of a head for classes; 0: no such head.", least=0)
    dim: int = 512
    depth: int = 24
    heads: int = 8
    causal: bool = setting(True, "A token sees only those before it, and itself.")
    dropout: float = setting(
        0.0,
        "Share of entries dropped while training, of the embedded tokens and of what a block adds to them.",
        least=0,
        below=1,
    )

    @property
    def sequence_length(self) -> int:
        """Tokens that a block sees."""
        return self.num_positions

    def describe_input(self) -> str:
        """What goes in and what comes out, for people."""
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        return f"{self.num_positions} tokens of {self.vocab_size} values{classes}"

    def fit(self, images: Images) -> tuple[Self, int]:
        """The configuration for such images, a token a pixel, and the size that they must be given.

        Larger images than the positions hold are made smaller, unless their size was asked for: then the positions follow.

        Raises:
          InputError: positions or a vocabulary, set by the user, that the images do not have.
        """
        if images.requested_width is not None:
            raise InputError(
                f"data.image_width: found {images.requested_width}; accepted for a model of tokens: none (square images)"
            )
        size = images.requested_size or min(images.size, math.isqrt(self.num_positions))
        vocab_size = images.levels if images.channels == 1 else self.vocab_size
        for name, found, needed, what in (
            ("num_positions", self.num_positions, size * size, f"pixels of {size}×{size} images"),
            ("vocab_size", self.vocab_size, vocab_size, "grey levels of the images"),
        ):
            if name in images.user_set and found != needed:
                raise InputError(f"model.{name}: found {found}; accepted: {needed}, the {what}")
        if self.num_classes:
            images.check_num_classes(self.num_classes)
        num_classes = self.num_classes and images.num_classes
        fitted = dataclasses.replace(
            self, vocab_size=vocab_size, num_positions=size * size, num_classes=num_classes
        )
        return fitted, size


@dataclasses.dataclass(frozen=True)
class IGPTConfig(TokenConfig):
    """All that determines an iGPT. The released weights have no biases; Hugging Face's port of them has (`use_bias`)."""

    family: str = "igpt"
    use_bias: bool = setting(False, "Biases, as in Hugging Face's port; the released weights have none.")


@dataclasses.dataclass(frozen=True)
class CRATEGPTConfig(CRATELayers, TokenConfig):
    """All that determines a CRATE-GPT."""

    family: str = "crate_gpt"


def igpt(size: str, **overrides) -> IGPTConfig:
    """The configuration of a published size.

    Args:
      size: s, m, l or xl: 76,571,648, 455,157,760, 1,362,250,752 and 6,801,438,720 parameters at 1,024 positions and 512
        colours.
      **overrides: any field of `IGPTConfig`.
    Raises:
      InputError: another size.
    """
    one_of("size of iGPT", size, SIZES)
    dim, depth, heads = SIZES[size]
    return IGPTConfig(**{"dim": dim, "depth": depth, "heads": heads, **overrides})


class IGPTBlock(nnx.Module):
    """Attention and MLP, each on the normed residual stream and added to it.

    Initial values as released: queries, keys and values N(0, 1/d), attention's output N(0, 1/(d·depth)), MLP N(0, 0.02²).
    """

    def __init__(self, config: IGPTConfig, *, rngs: nnx.Rngs):
        dim, heads, dtype = config.dim, (config.heads, config.head_dim), config.compute_dtype
        options: dict[str, Any] = {"use_bias": config.use_bias, "dtype": dtype, "rngs": rngs}
        self.causal, self.kernel = config.causal, config.attention_kernel
        self.attention_norm = RMSNorm(dim, dtype=dtype, rngs=rngs)
        self.qkv = Dense((dim,), (3, *heads), stddev=dim**-0.5, **options)
        self.attention_output = Dense(heads, (dim,), stddev=(dim * config.depth) ** -0.5, **options)
        self.mlp_norm = RMSNorm(dim, dtype=dtype, rngs=rngs)
        self.mlp_in = Dense((dim,), (4 * dim,), stddev=0.02, **options)
        self.mlp_out = Dense((4 * dim,), (dim,), stddev=0.02, **options)

    def __call__(
        self,
        x: jax.Array,
        *,
        return_intermediates: bool = False,
        real: int | None = None,
        wanted: int | None = None,
        dropout: Dropout | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        normed = self.attention_norm(x)
        query, key, value = split_heads(self.qkv(normed))
        attended = attend(query, key, value, causal=self.causal, real=real, kernel=self.kernel)
        mixed = (x + drop(self.attention_output(attended), dropout, 0))[:, :wanted]
        out = mixed + drop(self._mlp(mixed), dropout, 1)
        if not return_intermediates:
            return out, {}
        return out, {"normed": normed, "attention_in": x, "attention_out": mixed, "out": out}

    def decode(self, x: jax.Array, cache: tuple[jax.Array, jax.Array], position: jax.Array):
        """The block on one token `[b, d]`; the cache holds the keys and values `[b, k, n, p]` of those before it."""
        query, key, value = split_heads(self.qkv(self.attention_norm(x)))
        keys, values = (
            cache_token(cached, new, position) for cached, new in zip(cache, (key, value), strict=True)
        )
        x = x + self.attention_output(attend_cached(query, keys, values, position))
        return x + self._mlp(x), (keys, values)

    def _mlp(self, x: jax.Array) -> jax.Array:
        hidden = self.mlp_in(self.mlp_norm(x))
        return self.mlp_out(hidden * jax.nn.sigmoid(1.702 * hidden))


class _TokenModel(nnx.Module):
    """Embedding, positions, blocks, final norm, output table; see `IGPT` for what goes in and out."""

    def __init__(
        self,
        config: TokenConfig,
        rngs: nnx.Rngs,
        *,
        make_block: Callable[..., CausalBlock],
        make_norm: Callable[..., nnx.Module],
    ):
        self.config = config
        self.dtype = dtype = config.compute_dtype
        # The last row of a causal model's table is the learned start token.
        rows = config.vocab_size + config.causal
        self.token_embedding = normal_param((rows, config.dim), 0.02, rngs)
        self.position_embedding = normal_param((config.num_positions, config.dim), 0.01, rngs)
        self.blocks = Stack(lambda rngs: make_block(rngs=rngs), config, rngs=rngs)
        self.head_norm = make_norm(config.dim, dtype=dtype, rngs=rngs)
        zeros: dict[str, Any] = {"stddev": 0.0, "use_bias": False, "dtype": dtype, "rngs": rngs}
        self.head = Dense((config.dim,), (config.vocab_size,), **zeros)
        self.class_head = Dense((config.dim,), (config.num_classes,), **zeros) if config.num_classes else None

    def __call__(
        self, tokens: jax.Array, *, train: bool = False, key: jax.Array | None = None, trace: Trace = False
    ) -> tuple[Any, Any]:
        dropout = None
        if train and self.config.dropout:
            if key is None:
                raise InputError(f"model.dropout: found {self.config.dropout:g} and no key; accepted: a key")
            dropout = Dropout(self.config.dropout, key)
        positions = self.config.num_positions
        if tokens.ndim != 2 or tokens.shape[1] > positions or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise InputError(
                f"tokens: found {tokens.dtype} {tokens.shape}; accepted: integers [b, n], n ≤ model.num_positions "
                f"{positions}"
            )
        if self.config.causal:
            start = jnp.full_like(tokens[:, :1], self.config.vocab_size)
            tokens = jnp.concatenate([start, tokens[:, :-1]], axis=1)
        x = self._embed(tokens, self.position_embedding[: tokens.shape[1]])
        # The layers have the numbers 0 … depth − 1.
        x = drop(x, dropout, self.config.depth)
        x, traced = self.blocks(x, trace=trace, dropout=dropout)
        x = self.head_norm(x)
        logits = self.head(x).astype(jnp.float32)
        if self.class_head is None:
            return logits, traced
        pooled = jnp.mean(x.astype(jnp.float32), axis=1)
        return (logits, self.class_head(pooled).astype(jnp.float32)), traced

    def decoder(self) -> Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, Any]]:
        """See `crate_jax.models.Model.decoder`."""
        decode_blocks = self.blocks.decoder()

        def decode(previous, cache, position):
            previous = jnp.where(position == 0, self.config.vocab_size, previous)
            x, cache = decode_blocks(
                self._embed(previous, self.position_embedding[position]), cache, position
            )
            return self.head(self.head_norm(x)).astype(jnp.float32), cache

        return decode

    def _embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        embedded = jnp.where((tokens == MASKED)[..., None], 0.0, self.token_embedding[tokens])
        return (embedded + positions).astype(self.dtype)


class IGPT(_TokenModel):
    """iGPT on integer tokens `[b, n]`, n ≤ `num_positions`; returns `(logits [b, n, vocab_size] float32, trace)`.

    Causal: logits at position t predict token t from tokens 0 … t − 1 (a learned start token is put in front and the last
    token is dropped). Otherwise every position sees all tokens, and a token that is MASKED has a zero embedding. With
    `num_classes` the output is `(logits, class logits [b, num_classes])`, the latter a linear map of the mean over positions
    of the final normed layer.
    """

    def __init__(self, config: IGPTConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs, make_block=partial(IGPTBlock, config), make_norm=RMSNorm)

    @staticmethod
    def init_cache(config: IGPTConfig, batch_size: int, length: int) -> tuple:
        """Keys and values of every layer, each `[b, heads, length, head_dim]`."""
        empty = partial(_empty, config, batch_size, length)
        return tuple((empty(), empty()) for _ in range(config.depth))


class CRATEGPT(_TokenModel):
    """CRATE-GPT: the task, embeddings and heads of `IGPT` with CRATE's blocks and LayerNorm."""

    def __init__(self, config: CRATEGPTConfig, rngs: nnx.Rngs):
        make_block = partial(CRATEBlock, config, config, causal=config.causal)
        super().__init__(config, rngs, make_block=make_block, make_norm=layer_norm)

    @staticmethod
    def init_cache(config: CRATEGPTConfig, batch_size: int, length: int) -> tuple:
        """Subspace projections of every layer, `[b, heads, length, head_dim]`."""
        return tuple(_empty(config, batch_size, length) for _ in range(config.depth))


def _empty(config: TokenConfig, batch_size: int, length: int) -> jax.Array:
    shape = (batch_size, config.heads, length, config.head_dim)
    return jnp.zeros(shape, config.compute_dtype)
