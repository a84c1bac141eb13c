"""Twice the digits of fp32: sums of products kept as an unevaluated pair hi + lo (about 48 bits).

A matrix of norm 1e6 and low rank loses, when its Gram matrix or a QR factorisation of it is rounded to fp32,
exactly the small singular values that logdet(I + αYᵀY) counts. Here the columns are orthogonalised with
every update exact.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from crate_jax.objectives.powers import largest_exponent, shift


def zeros(shape, like):
    """Zeros that vary over the same mesh axes as `like` inside shard_map, as a loop's carry must."""
    return jnp.where(jnp.zeros(shape, bool), like.ravel()[0], jnp.float32(0))


def _halves(x):
    """x = a + b with 12 significant bits each. Products of halves are exact in fp32, so it does not matter
    whether a compiler fuses a multiplication with an addition."""
    bits = lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFFF000)
    a = lax.bitcast_convert_type(bits, jnp.float32)
    return a, x - a


def _two_sum(a, b):
    """a + b as the rounded sum and its exact error (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _add_outer(hi, lo, column, column_lo, row):
    """(hi, lo) + (column + column_lo) rowᵀ: `[..., r, m]`, `[..., r]`, `[..., m]`."""
    column_a, column_b = (half[..., :, None] for half in _halves(column))
    row_a, row_b = (half[..., None, :] for half in _halves(row))
    hi, error = _two_sum(hi, column_a * row_a)
    lo = lo + error
    hi, error = _two_sum(hi, column_a * row_b)
    lo = lo + error
    hi, error = _two_sum(hi, column_b * row_a)
    lo = lo + error + (column_b * row_b + column_lo[..., :, None] * row[..., None, :])
    # hi + lo unchanged, hi the rounded sum again.
    return _two_sum(hi, lo)


def _add_pairs(a, b):
    hi, error = _two_sum(a[0], b[0])
    return hi, a[1] + b[1] + error


@jax.custom_jvp
def total(hi, lo):
    """Σ (hi + lo) over axis -2, rounded only at the end."""
    zero = jnp.float32(0)
    hi, lo = lax.reduce((hi, lo), (zero, zero), _add_pairs, (hi.ndim - 2,))
    return hi + lo


@total.defjvp
def _(primals, tangents):
    return total(*primals), jnp.sum(tangents[0] + tangents[1], axis=-2)


def _inner(column, column_lo, hi, lo):
    """(column + column_lo)ᵀ (hi + lo), rounded only at the end: `[..., m]`."""
    column, column_lo = column[..., :, None], column_lo[..., :, None]
    column_a, column_b = _halves(column)
    hi_a, hi_b = _halves(hi)
    rest = column_a * hi_b + column_b * hi_a + (column_b * hi_b + column * lo + column_lo * hi)
    return total(column_a * hi_a, rest)


def _leading(x, bits):
    """x rounded to `bits` bits of the largest magnitude in its row."""
    unit = largest_exponent(x, -1) + 1 - bits
    return shift(jnp.round(shift(x, -unit)), unit)


def product(x, y):
    """x yᵀ of fp32 matrices `[..., r, m]` and `[..., s, m]` as a pair, to 2⁻³⁰ of the products of their rows' lengths.

    The leading bits are multiplied apart: their products are whole numbers of one unit, which fp32 adds exactly. A
    matmul on any device does it, the rest is plain fp32.
    """
    bits = min(7, (24 - math.ceil(math.log2(x.shape[-1]))) // 2)
    first, second = _leading(x, bits), _leading(y, bits)

    def multiply(a, b):
        return jnp.matmul(a, jnp.swapaxes(b, -1, -2), precision=lax.Precision.HIGHEST)

    return _two_sum(multiply(first, second), multiply(first, y - second) + multiply(x - first, y))


def product_exactly(x, y):
    """x yᵀ as a pair `[r, s]`, to 2⁻⁴⁰ of its terms' size: x `[r, m]`, y `[s, m]`, six slices of 7 bits of each."""
    bits, most = 7, 1024  # products of 14 bits: 2¹⁰ of them add exactly
    pieces = -(-x.shape[-1] // most)
    x, y = (jnp.pad(a, ((0, 0), (0, pieces * most - a.shape[-1]))) if pieces > 1 else a for a in (x, y))

    def slices(a):
        for _ in range(42 // bits):
            part = _leading(a, bits)
            yield part
            a = a - part

    def add(pair, operands):
        left, right = (list(slices(a)) for a in operands)
        for i, a in enumerate(left):
            for b in right[: len(right) - i]:
                pair = _add_pairs(pair, (jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST), jnp.float32(0)))
        return pair, None

    zero = zeros((x.shape[0], y.shape[0]), x)
    if pieces <= 1:
        return add((zero, zero), (x, y))[0]
    split = (jnp.moveaxis(a.reshape(a.shape[0], pieces, most), 1, 0) for a in (x, y))
    return lax.scan(add, (zero, zero), tuple(split))[0]


def times(x, y):
    """x y elementwise as a pair."""
    (x_a, x_b), (y_a, y_b) = _halves(x), _halves(y)
    hi, first = _two_sum(x_a * y_a, x_a * y_b)
    hi, second = _two_sum(hi, x_b * y_a)
    return _two_sum(hi, first + second + x_b * y_b)


def add(x, y):
    """The sum of two pairs as a pair."""
    return _two_sum(*_add_pairs(x, y))


def divide(x, y):
    """x / y as a pair, of a number and a pair."""
    quotient = x / y[0]
    back, error = times(quotient, y[0])
    return _two_sum(quotient, ((x - back) - error - quotient * y[1]) / y[0])


def sum_of_squares(x, axis):
    """Σ x² over one axis as a pair."""
    zero = jnp.float32(0)
    return lax.reduce(times(x, x), (zero, zero), _add_pairs, (axis % x.ndim,))


def project(z, bases):
    """Z U_k as a pair `[..., k, n, p]`, as exact as `product`."""
    k, d, p = bases.shape
    pair = product(z, jnp.swapaxes(bases, 1, 2).reshape(k * p, d))
    return tuple(jnp.swapaxes(x.reshape(*x.shape[:-1], k, p), -3, -2) for x in pair)


def project_exactly(z, bases):
    """Z U_k as a pair `[..., k, n, p]` of 48 bits, one feature at a time."""

    def add(i, pair):
        column = lax.dynamic_index_in_dim(z, i, -1, keepdims=False)[..., None, :]
        row = lax.dynamic_index_in_dim(bases, i, 1, keepdims=False)
        return _add_outer(*pair, column, jnp.zeros_like(column), row)

    k, d, p = bases.shape
    zero = zeros((*z.shape[:-2], k, z.shape[-2], p), z)
    return lax.fori_loop(0, d, add, (zero, zero))


def orthogonalise(hi, lo, a, k, least, within=None):
    """Unit upper-triangular V `[..., m, m]` and W = (hi + lo)V with VᵀD²V + a WᵀW diagonal, D = diag(2^-k), both rounded
    to fp32; and which columns depend on those before them, to 11 digits: their W is 0.

    Gram–Schmidt on the columns of [D; √a (hi + lo)] in three sweeps: the second and third remove what the rounding of the
    coefficients left. V stays exactly unit triangular and W = (hi + lo)V whatever the coefficients are, so the determinant
    of D² + a (hi + lo)ᵀ(hi + lo) is the product of the diagonal, with no cancellation. Once a column of W has shrunk to
    2⁻³⁶ of its length, all that is left of it is noise: the third sweep sets it to 0 and orthogonalises its V alone.

    a: `[..., 1]`, or `[..., m]`, equal within a group; k, least: `[..., m]`, least the smallest k of the group; columns
    mix only where `within` `[..., m, m]`.
    """
    m = hi.shape[-1]
    zero = zeros((*hi.shape[:-2], m, m), hi)
    a = jnp.broadcast_to(a, (*hi.shape[:-2], m))
    columns = jnp.arange(m)
    rows = shift(jnp.ones_like(k), 2 * (least - k))  # D², over its largest of the group
    unit = shift(jnp.ones_like(k), -2 * least)
    length = jnp.sum(hi**2, axis=-2)

    def column(step, state):
        v, v_lo, w, w_lo, depends = state
        j = step % m
        v_j, v_j_lo, w_j, w_j_lo = (
            lax.dynamic_index_in_dim(x, j, -1, keepdims=False) for x in (v, v_lo, w, w_lo)
        )
        gone = (step >= 2 * m) & (
            jnp.sum(w_j**2, axis=-1) <= 2.0**-72 * lax.dynamic_index_in_dim(length, j, -1, keepdims=False)
        )
        depends |= gone[..., None] & (columns == j)
        w_j, w_j_lo = (jnp.where(gone[..., None], 0.0, x) for x in (w_j, w_j_lo))
        inner = _inner(rows * v_j, rows * v_j_lo, v, v_lo)
        inner = jnp.where(gone[..., None], inner, unit * inner + a * _inner(w_j, w_j_lo, w, w_lo))
        mixes = columns > j
        if within is not None:
            mixes &= lax.dynamic_index_in_dim(within, j, -1, keepdims=False)
        own = lax.dynamic_index_in_dim(inner, j, -1)
        # A product with a column of length 0 is 0 too.
        row = jnp.where(mixes, -inner / jnp.maximum(own, 1e-37), 0.0)
        return *_add_outer(v, v_lo, v_j, v_j_lo, row), *_add_outer(w, w_lo, w_j, w_j_lo, row), depends

    depends = zero[..., 0, :] > 0
    start = (zero + jnp.eye(m, dtype=jnp.float32), zero, hi, lo, depends)
    v, _, w, _, depends = lax.fori_loop(0, 3 * m, column, start)
    return v, jnp.where(depends[..., None, :], 0.0, w), depends
