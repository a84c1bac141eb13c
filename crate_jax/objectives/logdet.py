"""The one hard number behind every coding rate: ½ logdet(I + αYᵀY), right in fp32 for any scale and rank.

Three ways, the cheapest first, each with a bound of its own on the rounding it leaves:

- Cholesky of the smaller Gram matrix, which squares the condition number: right while that stays below about 10³.
- Cholesky twice, of the Gram matrix and of what the first factor makes of the columns. Only Y itself is rounded then,
  so the condition number counts once. Tokens of trained networks need this much and no more.
- Columns orthogonalised with twice the digits (`twofloat`), dozens of times slower: columns that depend on each other,
  at large norms.

The choice is made where the data is: under sharding each device looks at its own samples, so no collective is needed;
under vmap a batch stays a batch, so only one of the ways is run.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from crate_jax.objectives import twofloat
from crate_jax.objectives.partition import batchwise
from crate_jax.objectives.powers import Scale, exponent, largest_exponent, shift

HIGHEST = lax.Precision.HIGHEST

# How far rounding may go: limits of the value's and of the gradient's bound, as measured on the tokens of
# tests/objectives and of trained networks. Cholesky: the value's relative error stayed below 16 · 2⁻²⁴ times its bound,
# the gradient's below 40 · 2⁻²⁴ times its own. Cholesky twice: below 2⁻²⁴ and 0.02 · 2⁻²⁴ times them, where the bounds
# are large.
CHOLESKY = (50.0, 200.0)
TWICE = (300.0, 4e5)


class Operands(NamedTuple):
    """Y = z, or Y_k = z U_k where bases are given, and α beside it, because scaling the entries would round them.

    z `[..., n, m]`; alpha `[..., 1]`; bases `[k, m, p]` or None. With `group` `[..., m]` (labels of the columns) the Gram
    matrix keeps only the products within a group, which makes one block-diagonal determinant of all groups; alpha and
    weight are then `[..., m]`, equal within a group, and each group's term is multiplied by its weight.
    """

    z: jax.Array
    alpha: Scale
    bases: jax.Array | None = None
    group: jax.Array | None = None
    weight: jax.Array | None = None


class _Columns(NamedTuple):
    """I + αYᵀY = C (D² + a SᵀS) C for D = C⁻¹ = diag(2^-k), which brings the largest entry of every column to order
    one: the columns S `[..., r, m]`, a `[..., 1 or m]`, k and the power s of S_j = 2^s_j Y_j `[..., m]`, and a mask of the
    products that count (or None)."""

    s: jax.Array
    a: jax.Array
    k: jax.Array
    power: jax.Array
    within: jax.Array | None


def project(z, bases):
    """Y: z itself, or z U_k `[..., k, n, p]`."""
    return z if bases is None else jnp.einsum("...nd,kdp->...knp", z, bases, precision=HIGHEST)


def _transpose(x):
    return jnp.swapaxes(x, -1, -2)


def _norm(x):
    return jnp.sqrt(jnp.sum(x**2, axis=(-2, -1)))


def _eye(like):
    return jnp.broadcast_to(jnp.eye(like.shape[-1], dtype=jnp.float32), like.shape)


def _is_wide(y, group):
    return group is None and y.shape[-1] > y.shape[-2]


def _columns(operands, height=None):
    z, (a, q), bases, group, _ = operands
    y = project(z, bases)
    wide = _is_wide(y, group)
    if bases is not None:
        a, q = a[..., None, :], q[..., None, :]
    y = _transpose(y) if wide else y
    height = (
        largest_exponent(y, -2)[..., 0, :] if height is None else jnp.full(y.shape[-1], height, jnp.float32)
    )
    k = jnp.maximum(height + q, 0.0)
    power = q - k
    s = shift(y, power[..., None, :])
    within = None if group is None else group[..., :, None] == group[..., None, :]
    return _Columns(s, a, k, power, within)


def _rounding(columns, operands):
    """A bound on what the columns' own rounding comes to, in units of 2⁻²⁴: their lengths."""
    z, _, bases, _, _ = operands
    if bases is None:
        return jnp.sqrt(jnp.sum(columns.s**2, axis=-2))
    # A projection is as exact as its tokens and bases are long, however short it is itself.
    tokens = jnp.sum(z**2, axis=-1)[..., None, :]
    if columns.k.shape[-1] != bases.shape[-1]:
        length = jnp.broadcast_to(tokens, columns.k.shape)
    else:
        length = jnp.sum(tokens, axis=-1, keepdims=True) * jnp.sum(bases**2, axis=-2)
    return shift(jnp.sqrt(length), columns.power)


def _oriented(y, columns):
    """A projection shaped and scaled as the columns are."""
    y = _transpose(y) if _is_wide(y, columns.within) else y
    return shift(y, columns.power[..., None, :])


def _gram(columns, s):
    gram = columns.a[..., None] * jnp.einsum("...ri,...rj->...ij", s, s, precision=HIGHEST)
    return gram if columns.within is None else jnp.where(columns.within, gram, 0.0)


def _inverse(factor):
    return lax.linalg.triangular_solve(factor, _eye(factor), left_side=True, lower=True)


def log1p(delta, k, rest=0.0):
    """log(1 + rest + 4^k δ), also where 4^k δ overflows."""
    beyond = (delta > 0) & (exponent(delta) + 2 * k > 100)
    power = jnp.where(delta > 0, 2 * k, jnp.minimum(2 * k, 100))  # 0 · ∞ has no place in a derivative
    small = jnp.log1p(rest + shift(jnp.where(beyond, 0.0, delta), power))
    return jnp.where(beyond, jnp.log(jnp.where(beyond, delta, 1.0)) + 2 * math.log(2) * k, small)


def _half_sum(logs, weight):
    """½ Σ over the last axis, exact but for the last rounding: hundreds of terms cost digits otherwise."""
    logs = logs if weight is None else weight * logs
    return 0.5 * twofloat.total(logs[..., None], jnp.zeros_like(logs)[..., None])[..., 0]


def _relative(columns):
    """2^s_j, the factor from S's derivative to Y's, over its largest."""
    return shift(jnp.ones_like(columns.power), columns.power - jnp.max(columns.power, axis=-1, keepdims=True))


def _cholesky(ratio, columns, weight):
    """Value, X = S(D² + a SᵀS)⁻¹ where `ratio` asks for it, whether both can be trusted, and the factor L with L⁻¹."""
    gram = _gram(columns, columns.s)
    unit = shift(jnp.ones_like(columns.k), -2 * columns.k)
    factor = lax.linalg.cholesky(gram + unit[..., None] * _eye(gram), symmetrize_input=False)
    diagonal = jnp.diagonal(gram, axis1=-2, axis2=-1)
    # The pivots are D² + δ; δ is formed without D², so that tiny tokens keep their digits.
    logs = log1p(diagonal - jnp.sum(jnp.tril(factor, -1) ** 2, axis=-1), columns.k)
    value = _half_sum(logs, weight)
    # Rounding changes A by about 2⁻²⁴ of its diagonal, hence logdet by that times Σ a_jj (A⁻¹)_jj, the variance inflation
    # factors. (A⁻¹)_jj ≤ 1/D_j², which costs nothing to know; where that is not enough, L⁻¹ has them.
    limit = CHOLESKY[0] * 0.5 * jnp.sum(logs, axis=-1)

    def inflation(inverse):
        return jnp.sum(diagonal * jnp.sum(inverse**2, axis=-2), axis=-1)

    if not ratio:
        simple = jnp.sum(shift(diagonal, 2 * columns.k), axis=-1) <= limit
        inverse, trusted = lax.cond(
            jnp.all(simple),
            lambda: (jnp.zeros_like(factor), simple),
            lambda: (inverse := _inverse(factor), simple | (inflation(inverse) <= limit)),
        )
        return value, None, trusted, (factor, inverse)
    inverse = _inverse(factor)
    trusted = inflation(inverse) <= limit
    solved = jnp.einsum("...ki,...kj->...ij", inverse, inverse, precision=HIGHEST)
    x = jnp.matmul(columns.s, solved, precision=HIGHEST)
    # X changes by X E A⁻¹, e_ij about 2⁻²⁴ of the root of a_ii a_jj.
    root, scale = jnp.sqrt(diagonal), _relative(columns)
    change = _norm(x * root[..., None, :]) * _norm(root[..., :, None] * solved * scale[..., None, :])
    return value, x, trusted & (change <= CHOLESKY[1] * _norm(x * scale[..., None, :])), (factor, inverse)


def _cholesky_twice(ratio, columns, operands, factors):
    """The same from Q = S L⁻ᵀ, whose columns are nearly orthonormal: a second factor mends the rounding of L.

    Q takes 31 bits: along what S sends to (almost) zero it is a small difference of large numbers.
    """
    factor, inverse = factors
    top = shift(_transpose(inverse), -columns.k[..., :, None])
    if operands.bases is None:
        body = sum(twofloat.product(columns.s, inverse))
    else:
        hi, lo = (_oriented(x, columns) for x in twofloat.project(operands.z, operands.bases))
        body, rest = twofloat.product(hi, inverse)
        body = body + (rest + jnp.matmul(lo, _transpose(inverse), precision=HIGHEST))
    near = _gram(columns, body) + jnp.einsum("...ki,...kj->...ij", top, top, precision=HIGHEST)
    second = lax.linalg.cholesky(near, symmetrize_input=False)
    pivots = jnp.diagonal(factor, axis1=-2, axis2=-1), jnp.diagonal(second, axis1=-2, axis2=-1)
    logs = 2 * (jnp.log(pivots[0]) + math.log(2) * columns.k + jnp.log(pivots[1]))
    value = _half_sum(logs, operands.weight)
    back = _inverse(second)
    mended = jnp.matmul(jnp.matmul(_transpose(back), back, precision=HIGHEST), inverse, precision=HIGHEST)
    x = jnp.matmul(body, mended, precision=HIGHEST)
    # A column of S changes by 2⁻²⁴ of its rounding, the value by <aX, that>, X by about that times A⁻¹.
    a, scale, rounding = columns.a, _relative(columns), _rounding(columns, operands)
    moved = jnp.sum(rounding * a * jnp.sqrt(jnp.sum(x**2, axis=-2)), axis=-1)
    trusted = moved <= TWICE[0] * 0.5 * jnp.sum(logs, axis=-1)
    if not ratio:
        return value, None, trusted
    change = _norm(inverse * rounding[..., None, :]) * _norm(inverse * scale[..., None, :])
    return value, x, trusted & (change <= TWICE[1] * _norm(x * scale[..., None, :]))


def _orthogonalised(columns, operands):
    """The same with twice the digits, whatever the columns are."""
    z, _, bases, _, weight = operands
    if bases is None:
        pair = columns.s, twofloat.zeros(columns.s.shape, columns.s)
    else:
        pair = (_oriented(x, columns) for x in twofloat.project_exactly(z, bases))
    # Powers of two relative to the least of a group: V's part of a product then never vanishes for all columns.
    same = True if columns.within is None else columns.within
    least = jnp.min(jnp.where(same, columns.k[..., None, :], jnp.inf), axis=-1)
    v, w, depends = twofloat.orthogonalise(*pair, columns.a, columns.k, least, columns.within)
    size = columns.a * jnp.sum(w**2, axis=-2)
    off = shift(v - _eye(v), columns.k[..., None, :] - columns.k[..., :, None])
    logs = log1p(size, columns.k, jnp.sum(jnp.clip(off, -1e15, 1e15) ** 2, axis=-2))
    value = _half_sum(logs, weight)
    # W/pivot: the pivot is size + 4^-k (1 + …).
    pivot = size + shift(1 + jnp.sum(jnp.clip(off, -1e15, 1e15) ** 2, axis=-2), -2 * columns.k)
    scaled = w / jnp.where(pivot > 0, pivot, 1.0)[..., None, :]
    x = jnp.einsum("...rk,...jk->...rj", scaled, v, precision=HIGHEST)
    # X's rows are orthogonal to what Y sends to zero, which the rounding of W hides.
    null = jnp.where(depends[..., None, :], shift(v, least[..., None] - columns.k[..., :, None]), 0.0)
    null = null / jnp.maximum(jnp.sqrt(jnp.sum(null**2, axis=-2, keepdims=True)), 1e-18)
    height = shift(jnp.ones_like(columns.k), least - columns.k)[..., None, :]
    for _ in range(2):
        along = jnp.matmul(x * height, null, precision=HIGHEST)
        part = jnp.matmul(along, _transpose(null), precision=HIGHEST)
        x = x - jnp.where(height > 0, part / jnp.where(height > 0, height, 1.0), 0.0)
    return value, x


def value_and_slope(ratio, operands, height=None):
    """The value and, where `ratio` is asked for, G = αY (I + αYᵀY)⁻¹, its derivative by Y (for one group's weight).

    `height` is the exponent of the columns' largest entries where it is known, which saves looking.
    """
    columns = _columns(operands, height)
    weight = operands.weight
    wide = columns.s.shape != jax.eval_shape(project, operands.z, operands.bases).shape

    def result(value, x):
        if not ratio:
            return (value,)
        slope = shift(columns.a[..., None, :] * x, columns.power[..., None, :])
        return value, _transpose(slope) if wide else slope

    def either(trusted, first, second):
        """Each sample's own choice, so that a result does not depend on the rest of the batch."""
        return tuple(
            a
            if a is None
            else jnp.where(trusted.reshape(trusted.shape + (1,) * (a.ndim - trusted.ndim)), a, b)
            for a, b in zip(first, second, strict=True)
        )

    value, x, trusted, factors = _cholesky(ratio, columns, weight)

    def otherwise():
        value_twice, x_twice, mended = _cholesky_twice(ratio, columns, operands, factors)
        better = either(trusted, (value, x), (value_twice, x_twice))
        good = trusted | mended

        def exactly():
            return result(*either(good, better, _orthogonalised(columns, operands)))

        return lax.cond(jnp.all(good), lambda: result(*better), exactly)

    return lax.cond(jnp.all(trusted), lambda: result(value, x), otherwise)


def _dispatch():
    """The operation for each kind of operands, for the value alone and for the value with its derivative."""

    def plain(ratio, z, *alpha):
        return value_and_slope(ratio, Operands(z, Scale(*alpha)))

    def subspaces(ratio, z, bases, *alpha):
        return value_and_slope(ratio, Operands(z, Scale(*alpha), bases))

    def groups(ratio, z, mantissa, power, group, weight):
        return value_and_slope(ratio, Operands(z, Scale(mantissa, power), None, group, weight))

    rules = {
        plain: ("... n m, ... a, ... b", "...", "... n m"),
        subspaces: ("... n d, k d p, ... a, ... b", "... k", "... k n p"),
        groups: ("... r m, ... m, ... m, ... m, ... m", "...", "... r m"),
    }
    return {
        (kind.__name__, ratio): batchwise(
            functools.partial(kind, ratio),
            f"{given} -> {value}, {slope}" if ratio else f"{given} -> {value}",
            shared=1 if kind is subspaces else None,
        )
        for kind, (given, value, slope) in rules.items()
        for ratio in (False, True)
    }


_OPERATIONS = _dispatch()


def _run(ratio, operands):
    z, alpha, bases, group, weight = operands
    if bases is not None:
        return _OPERATIONS["subspaces", ratio](z, bases, *alpha)
    if group is not None:
        return _OPERATIONS["groups", ratio](z, *alpha, group, weight)
    return _OPERATIONS["plain", ratio](z, *alpha)


@jax.jit
def half_logdet(operands):
    """½ logdet(I + αYᵀY) per sample `[...]`, per subspace `[..., k]` where bases are given.

    Closed-form derivative <G, dY> + ½<G, Y>dα/α with G = αY(I + αYᵀY)⁻¹, itself differentiable to any order.
    """
    z, bases = operands.z, operands.bases
    shape = z.shape[:-2] if bases is None else (*z.shape[:-2], bases.shape[0])
    if 0 in z.shape or (bases is not None and 0 in bases.shape):
        return jnp.zeros(shape, jnp.float32)
    return _half_logdet(normalised(operands))


def normalised(operands):
    """The same with the largest entry of every sample (and of every basis) of order one, its scale moved into α."""
    z, (a, q), bases, group, weight = operands
    height = largest_exponent(z, (-2, -1))
    q = q + height[..., 0]
    if bases is not None:
        own = largest_exponent(bases, None)
        bases, q = shift(bases, -own), q + own.reshape(())
    return Operands(shift(z, -height), Scale(a, q), bases, group, weight)


@jax.custom_jvp
def _half_logdet(operands):
    return _run(False, operands)[0]


@_half_logdet.defjvp
def _(primals, tangents):
    (value, _), (tangent, _) = _value_and_slope_jvp(primals, tangents)
    return value, tangent


@jax.custom_jvp
def _value_and_slope(operands):
    """The value and G, shaped as Y."""
    return _run(True, operands)


@_value_and_slope.defjvp
def _value_and_slope_jvp(primals, tangents):
    ((z, (a, q), bases, group, weight),), ((dz, (da, _), dbases, *_),) = primals, tangents
    value, slope = _value_and_slope(*primals)
    if bases is None:
        y, dy = z, dz
        a, q, da = a[..., None, :], q[..., None, :], da[..., None, :]
    else:
        y, dy = jax.jvp(project, (z, bases), (dz, dbases))
        a, q, da = a[..., None, None, :], q[..., None, None, :], da[..., None, None, :]
    moved = slope * (dy + 0.5 * (da / a) * y)
    tangent = jnp.sum(moved if weight is None else weight[..., None, :] * moved, axis=(-2, -1))

    orient = _transpose if _is_wide(y, group) else lambda x: x
    y, dy, columns = orient(y), orient(dy), orient(slope)
    within = 1.0 if group is None else (group[..., :, None] == group[..., None, :]).astype(jnp.float32)

    def gram(a, b):
        return within * jnp.matmul(_transpose(a), b, precision=HIGHEST)

    # A⁻¹ = I − YᵀG, and dG = (d(αY) − G dA) A⁻¹ with dA the change of A = I + αYᵀY.
    alpha = shift(a, 2 * q)
    change = da / a * alpha
    half = gram(dy, y)
    grown = alpha * (half + _transpose(half)) + change * gram(y, y)
    dslope = alpha * dy + change * y - jnp.matmul(columns, grown, precision=HIGHEST)
    dslope = dslope - jnp.matmul(dslope, gram(y, columns), precision=HIGHEST)
    return (value, slope), (tangent, orient(dslope))
