"""Images to tokens and back: a token per pixel, in raster order; data that are tokens already stay as they are."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import InputError
from crate_jax.data.dataset import DatasetInfo


class ValueMeaning(NamedTuple):
    """What the numbers in a batch stand for.

    Attributes:
      max_value: the largest one: white, or the last token.
      colours: the palette `[k, 3]` in [−1, 1] whose nearest colour a pixel's token is; None: values are tokens already.
      entry: the entry of a batch that holds them, "image" or "tokens".
      unit: what a token is, for people.
      kind: what examples are, for people.
      floor: entropy in nats of each token given those before it, where the data are made and it is known.
      answer: where in an example what follows from the tokens before begins; None: nowhere.
    """

    max_value: int
    colours: np.ndarray | None = None
    entry: str = "image"
    unit: str = "pixel"
    kind: str = "images"
    floor: tuple[float, ...] | None = None
    answer: int | None = None

    @classmethod
    def of(cls, info: DatasetInfo, colours: np.ndarray | None = None) -> "ValueMeaning":
        """That of a dataset, with the palette that a model of its tokens uses."""
        tokens = info.tokens
        if tokens is None:
            return cls(info.max_value, colours)
        return cls(
            tokens.vocab_size - 1, None, "tokens", tokens.unit, tokens.kind, tokens.floor, tokens.answer
        )


class Tokenizer(NamedTuple):
    """`encode`: images uint8 `[b, h, w, c]` → int32 `[b, h·w]`, or tokens `[b, n]` → `[b, n]`, on the device.
    `decode`: the way back, in numpy, to square images; exact for grey levels, the nearest colours of the palette otherwise.
    """

    vocab_size: int
    encode: Callable[[jax.Array], jax.Array]
    decode: Callable[[np.ndarray], np.ndarray]


def make_tokenizer(meaning: ValueMeaning, vocab_size: int) -> Tokenizer:
    """The tokens of a palette, or grey levels as they are.

    Args:
      meaning: what the values are.
      vocab_size: that of the model.
    Raises:
      InputError: palette and vocabulary disagree.
    """
    found = meaning.max_value + 1
    what = "grey levels" if meaning.entry == "image" else f"kinds of {meaning.unit}"
    if meaning.colours is not None:
        found, what = len(meaning.colours), "colours in the palette"
    if found != vocab_size:
        raise InputError(f"palette: found {found} {what}; accepted: {vocab_size}, which is model.vocab_size")

    def encode(images: jax.Array) -> jax.Array:
        if meaning.colours is None:
            return images.reshape(images.shape[0], -1).astype(jnp.int32)
        return quantise(_scaled(images), meaning.colours).reshape(images.shape[0], -1)

    def decode(tokens: np.ndarray) -> np.ndarray:
        side = math.isqrt(tokens.shape[-1])
        levels = np.arange(found)[:, None] if meaning.colours is None else to_bytes(meaning.colours)
        return levels.astype(np.uint8)[tokens].reshape(len(tokens), side, side, -1)

    return Tokenizer(vocab_size, encode, decode)


def quantise(x: jax.Array, colours: jax.Array) -> jax.Array:
    """argmin_k ‖x − c_k‖² = argmin_k ‖c_k‖² − 2 x·c_k: the nearest colour of every pixel.

    The largest array is that of the distances `[…, k]`, as large as a model's logits: no `[…, k, 3]` of differences.

    Args:
      x: float `[…, 3]` in [−1, 1].
      colours: `[k, 3]`.
    Returns:
      int32 `[…]`.
    """
    colours = jnp.asarray(colours, jnp.float32)
    # Neighbouring colours differ by less than bfloat16, to which accelerators round factors by default, can tell.
    products = jnp.einsum("...c,kc->...k", x, colours, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(colours**2, axis=-1) - 2 * products, axis=-1).astype(jnp.int32)


def dequantise(tokens: jax.Array, colours: jax.Array) -> jax.Array:
    """The colour `[…, 3]` in [−1, 1] of every token `[…]`."""
    return jnp.asarray(colours, jnp.float32)[tokens]


def to_bytes(colours: np.ndarray) -> np.ndarray:
    """Colours in [−1, 1] as bytes, rint(127.5 (c + 1))."""
    return np.clip(np.rint(127.5 * (np.asarray(colours) + 1)), 0, 255).astype(np.uint8)


def _scaled(images: jax.Array) -> jax.Array:
    return images.astype(jnp.float32) / 127.5 - 1
