"""Images to tokens and back: a token a pixel, in raster order; a token a byte of text."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import InputError


class Pixels(NamedTuple):
    """What a pixel's value means: `max_value` is white; `colours` `[k, 3]` in [−1, 1] the palette, None for grey levels.

    The bytes of a text (`text`) stand for themselves, as grey levels do.
    """

    max_value: int
    colours: np.ndarray | None = None
    text: bool = False

    @property
    def unit(self) -> str:
        """What a token is, for people."""
        return "byte" if self.text else "pixel"


class Tokenizer(NamedTuple):
    """`encode`: images uint8 `[b, h, w, c]` → int32 `[b, h·w]`, or bytes of text `[b, n]` → `[b, n]`, on the device.
    `decode`: the way back, in numpy, to square images; exact for grey levels, the nearest colours of the palette otherwise.
    """

    vocab_size: int
    encode: Callable[[jax.Array], jax.Array]
    decode: Callable[[np.ndarray], np.ndarray]


def make_tokenizer(pixels: Pixels, vocab_size: int) -> Tokenizer:
    """The tokens of a palette, or grey levels as they are.

    Args:
      pixels: what the images' values mean.
      vocab_size: that of the model.
    Raises:
      InputError: palette and vocabulary disagree.
    """
    found, what = pixels.max_value + 1, "grey levels"
    if pixels.colours is not None:
        found, what = len(pixels.colours), "colours in the palette"
    if found != vocab_size:
        raise InputError(f"palette: found {found} {what}; accepted: {vocab_size}, which is model.vocab_size")

    def encode(images: jax.Array) -> jax.Array:
        if pixels.colours is None:
            return images.reshape(images.shape[0], -1).astype(jnp.int32)
        return quantise(_scaled(images), pixels.colours).reshape(images.shape[0], -1)

    def decode(tokens: np.ndarray) -> np.ndarray:
        side = math.isqrt(tokens.shape[-1])
        levels = np.arange(found)[:, None] if pixels.colours is None else to_bytes(pixels.colours)
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
