"""Layers of a transformer in integers, whose results are the same on every machine: exact in any order, on any device.

A tensor of real numbers is int32 in fixed point: the number times 2^F, with F chosen when the model is quantised. Products
with kernels are int8 × int8 → int32; a factor of 15 bits goes in as two of int8, x = 128·hi + lo. There is no 64-bit number.
No sum overflows, whatever the input, because what goes into a product is cut to its width first:

    =====================  ===========================================  ==========================
    value                  cut to, or bounded by                        by
    =====================  ===========================================  ==========================
    residual stream        |x| < 2^19                                   `saturate`
    input of a product     |x| ≤ 2^14                                   `saturate`
    product of d features  2^14 · Σ|w| < 2^31, w int8 of a column       checked when quantised
    norm: Σ x²             d · 2^20 ≤ 2^30                              d ≤ MAX_WIDTH
    norm: x / ‖x‖          2^27, with 26 bits after the point           Cauchy-Schwarz
    scores                 p · 127 · 2^14 ≤ 2^30                        p ≤ MAX_HEAD_DIM
    weights of attention   2^14 − 1 each, their sum < 2^24              n ≤ MAX_POSITIONS
    weighted sum           127 · Σ weights < 2^31                       the same
    weights of symbols     2^20 each, their sum < 2^31                  v ≤ MAX_VOCAB
    =====================  ===========================================  ==========================
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.compression.rans import PRECISION, TOTAL

MAX_WIDTH = MAX_VOCAB = MAX_POSITIONS = 1024
MAX_HEAD_DIM = 512
RESIDUAL_BITS = 19
FACTOR_BITS = 14
# exp(−u / STEPS) for u = 0 … EXP_LENGTH − 1: down to e^−16.
STEPS = 256
EXP_LENGTH = 4096
WEIGHT_BITS = 14
# 1 / √v for v from 2^14 to 2^16, every 16.
ROOT_FIRST, ROOT_LAST, ROOT_STEP = 1 << 14, 1 << 16, 16
# x / ‖x‖ has so many bits after the point.
UNIT_BITS = 26
# σ(1.702 x) for x from −8 to 8.
SIGMOID_LENGTH = 4096
# On a processor: terms of one reduction, and positions of a block of attention.
GROUP = 16

Table = dict[str, np.ndarray]


class Scale(NamedTuple):
    """A factor multiplier · 2^−shift, for each feature or for all: |multiplier| < 2^15, 16 ≤ shift ≤ 30."""

    multiplier: jax.Array
    shift: jax.Array


def make_scale(factor: np.ndarray) -> Scale:
    """The `Scale` nearest to a factor between −½ and ½."""
    factor = np.asarray(factor, np.float64)
    if not np.all(np.abs(factor) < 0.5):
        raise ValueError(f"found a factor of {np.abs(factor).max():.3g}; accepted: below 0.5")
    shift = np.clip(15 - np.frexp(factor)[1], 16, 30)
    multiplier = np.clip(np.rint(np.ldexp(factor, shift)), 1 - 2**15, 2**15 - 1)
    return Scale(multiplier.astype(np.int32), shift.astype(np.int32))


def make_tables() -> Table:
    """What a model needs of exp, √ and σ, as integers; they are part of its file, so that no other machine makes its own."""
    falling = np.exp(-np.arange(EXP_LENGTH) / STEPS)
    roots = np.arange(ROOT_FIRST, ROOT_LAST, ROOT_STEP) + ROOT_STEP / 2
    points = (np.arange(SIGMOID_LENGTH) - SIGMOID_LENGTH // 2) / STEPS
    return {
        "weights": np.rint(falling * (2**WEIGHT_BITS - 1)).astype(np.int16),
        "symbols": np.rint(falling * TOTAL).astype(np.int32),
        "roots": np.rint(2**22 / np.sqrt(roots)).astype(np.int32),
        "sigmoid": np.rint(2**WEIGHT_BITS / (1 + np.exp(-1.702 * points))).astype(np.int16),
    }


def scaled(x: jax.Array, scale: Scale) -> jax.Array:
    """x · multiplier / 2^shift, to the nearest integer or the one beside it; any int32."""
    # In two parts of 15 bits: the product itself has 46. |x >> 15| ≤ 2^16, so each part is below 2^31.
    multiplier, shift = scale
    part = (x >> 15) * multiplier + (((x & 0x7FFF) * multiplier) >> 15)
    return (part + (1 << (shift - 16))) >> (shift - 15)


def saturate(x: jax.Array, bits: int) -> jax.Array:
    """x cut to −2^bits … 2^bits − 1."""
    return jnp.clip(x, -(1 << bits), (1 << bits) - 1)


def split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(hi, lo) int8 with x = 128·hi + lo, of −2^14 ≤ x < 2^14."""
    return (x >> 7).astype(jnp.int8), (x & 127).astype(jnp.int8)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x W for x `[b, d]`, cut to FACTOR_BITS, and W int8 `[d, k]`; int32."""
    parts = jnp.concatenate(split(saturate(x, FACTOR_BITS)))
    high, low = jnp.split(jax.lax.dot(parts, kernel, preferred_element_type=jnp.int32), 2)
    return 128 * high + low


def _sum(x: jax.Array, axis: int = -1) -> jax.Array:
    """Over an axis, which stays; in int32 where jax has 64 bits too."""
    grouped, axes = _grouped(x, axis)
    return jnp.expand_dims(jnp.sum(grouped, axis=axes, dtype=jnp.int32), axis)


def _max(x: jax.Array, axis: int = -1) -> jax.Array:
    """Over an axis, which stays."""
    grouped, axes = _grouped(x, axis)
    return jnp.expand_dims(jnp.max(grouped, axis=axes), axis)


def _grouped(x: jax.Array, axis: int) -> tuple[jax.Array, tuple[int, int]]:
    """x with an axis split in two, the second of at most GROUP, and their numbers.

    XLA computes longer reductions on a processor through windows, which are several times as slow.
    """
    axis %= x.ndim
    length = x.shape[axis]
    size = max(size for size in range(1, GROUP + 1) if length % size == 0)
    shape = *x.shape[:axis], length // size, size, *x.shape[axis + 1 :]
    return x.reshape(shape), (axis, axis + 1)


def _bit_length(x: jax.Array) -> jax.Array:
    return 32 - jax.lax.clz(x)


def unit(x: jax.Array, roots: jax.Array, eps: jax.Array, *, centred: bool) -> jax.Array:
    """x / √(Σ x² + ε), with UNIT_BITS after the point, of a residual stream `[b, d]`; of its deviation from the mean if
    `centred`. `eps` is ε in the units of x².
    """
    width = x.shape[-1]
    if centred:
        x = x - (2 * _sum(x) + width) // (2 * width)
    # The largest entry gets 14 bits, fewer if it is tiny.
    drop = jnp.maximum(_bit_length(_max(jnp.abs(x))) - 14, -4)
    x = shifted(x, drop)
    squares = _sum(jnp.square((x + 8) >> 4))
    squares = jnp.maximum(squares + (eps >> (2 * (drop + 4))), 1)
    # squares = v · 4^half with v in the table.
    half = (_bit_length(squares) - 15) >> 1
    v = jnp.where(half >= 0, squares >> (2 * jnp.maximum(half, 0)), squares << (-2 * jnp.minimum(half, 0)))
    return shifted(x * roots[(v - ROOT_FIRST) // ROOT_STEP], half)


def shifted(x: jax.Array, drop: jax.Array) -> jax.Array:
    """x / 2^drop, to the nearest integer; x · 2^−drop where drop is negative."""
    right = jnp.maximum(drop, 0)
    return jnp.where(drop > 0, (x + ((1 << right) >> 1)) >> right, x << -jnp.minimum(drop, 0))


def attend(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    position: jax.Array,
    scale: Scale,
    weights: jax.Array,
) -> jax.Array:
    """Attention of one token to the cache, as `models.attention.attend_cached`.

    Args:
      query: int32 `[b, h, p]`, cut to FACTOR_BITS. position: int scalar.
      keys, values: int8 `[h, n, p, b]`. With the lanes last, sums over anything else are vector instructions on a processor.
      scale: from query · key to steps of 1/STEPS in the exponent of the softmax, for each head `[h, 1]`.
      weights: the table of that name.
    Returns:
      int32 `[b, h, p]`, the mean of the values with 7 more bits after the point.
    """
    heads, length, width, lanes = keys.shape
    size = _block(length, lanes)
    scale = Scale(*(part[..., None] for part in scale))
    row = jax.lax.optimization_barrier(jnp.transpose(saturate(query, FACTOR_BITS), (1, 2, 0)))
    lowest = jnp.iinfo(jnp.int32).min

    def part(x: jax.Array, block: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, size * block, size, axis=1)

    def seen(block: jax.Array) -> jax.Array:
        return (size * block + jnp.arange(size) <= position)[:, None]

    def score(block, carried):
        scores, top = carried
        found = jnp.sum(row[:, None] * part(keys, block).astype(jnp.int32), axis=2, dtype=jnp.int32)
        found = jnp.where(seen(block), found, lowest)
        scores = jax.lax.dynamic_update_slice_in_dim(scores, found, size * block, axis=1)
        return scores, jnp.maximum(top, jnp.max(found, axis=1, keepdims=True))

    def mix(block, carried):
        total, mixed = carried
        below = jnp.where(seen(block), top - part(scores, block), 0)
        weight = weights[jnp.clip(scaled(below, scale), 0, EXP_LENGTH - 1)].astype(jnp.int32)
        # Behind the barrier a weight is looked up once, not again for each feature.
        weight = jax.lax.optimization_barrier(jnp.where(seen(block), weight, 0))
        product = weight[:, :, None] * part(values, block).astype(jnp.int32)
        total = total + jnp.sum(weight, axis=1, keepdims=True, dtype=jnp.int32)
        return total, mixed + jnp.sum(product, axis=1, dtype=jnp.int32)

    def over_blocks(body, *start):
        if size == length:
            return body(jnp.int32(0), start)
        return jax.lax.fori_loop(0, position // size + 1, body, start)

    one = (heads, 1, lanes)
    scores, top = over_blocks(
        score, jnp.zeros((heads, length, lanes), jnp.int32), jnp.full(one, lowest, jnp.int32)
    )
    total, mixed = over_blocks(mix, jnp.zeros(one, jnp.int32), jnp.zeros((heads, width, lanes), jnp.int32))
    whole = mixed // total
    return jnp.transpose(128 * whole + 128 * (mixed - whole * total) // total, (2, 0, 1))


def _block(length: int, lanes: int) -> int:
    """Positions that attention takes at a time: few on a processor, which skips what comes later; elsewhere, and for one
    or two lanes, all, since a loop costs more than it saves. The numbers are the same.
    """
    if jax.default_backend() != "cpu" or lanes < 3:
        return length
    return max(size for size in range(1, GROUP + 1) if length % size == 0)


def frequencies(logits: jax.Array, symbols: jax.Array) -> jax.Array:
    """What softmax gives each symbol of TOTAL slots, at least one, for logits int32 `[b, v]` in steps of 1/STEPS.

    What rounding leaves over or takes too much is the likeliest symbol's.
    """
    below = _max(logits) - logits
    weight = symbols[jnp.minimum(below, EXP_LENGTH - 1)]
    total = _sum(weight)
    # weight · TOTAL / total, by the reciprocal of the 16 leading bits of the total.
    drop = _bit_length(total) - 16
    reciprocal = (jnp.uint32(1 << 31) // ((total >> drop) + 1).astype(jnp.uint32)).astype(jnp.int32)
    part = (weight >> 10) * reciprocal + (((weight & 1023) * reciprocal) >> 10)
    return complete(1 + (part >> (drop + 21 - PRECISION)))


def complete(sizes: jax.Array) -> jax.Array:
    """The sizes `[b, v]` with what is missing to TOTAL given to the largest, or taken from it."""
    missing = TOTAL - _sum(sizes)
    largest = jnp.argmax(sizes, axis=-1, keepdims=True)
    return sizes + jnp.where(jnp.arange(sizes.shape[-1]) == largest, missing, 0)
