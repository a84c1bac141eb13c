"""The one hard number behind every coding rate: ½ logdet(I + αYᵀY), right in fp32 for any scale and rank.

Cholesky of the smaller Gram matrix where its own inverse says that it is accurate; elsewhere the columns of
Y are orthogonalised with twice the digits (`twofloat`). The choice is made where the data is: under sharding
every device looks at its own samples, so no collective is needed; under vmap a batch stays a batch, so only
one of the two runs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from crate_jax.objectives import twofloat

HIGHEST = lax.Precision.HIGHEST


class Operands(NamedTuple):
    """Y = z, or Y_k = z U_k where bases are given; α beside it, because scaling the entries would round
    them.

    z `[..., n, m]`; alpha `[..., 1]`; bases `[k, m, p]` or None. With `group` `[..., m]` (labels of the
    columns) the Gram matrix keeps only the products within a group, which makes one block-diagonal
    determinant of all groups; alpha and weight are then `[..., m]`, equal within a group, and each group's
    term is multiplied by its weight.
    """

    z: jax.Array
    alpha: jax.Array
    bases: jax.Array | None = None
    group: jax.Array | None = None
    weight: jax.Array | None = None


def project(z, bases):
    """Y: z itself, or z U_k `[..., k, n, p]`."""
    return z if bases is None else jnp.einsum("...nd,kdp->...knp", z, bases, precision=HIGHEST)


def cholesky_pivots(y, alpha, group=None):
    """δ `[..., m]` with logdet(I + αYᵀY) = Σ log1p(δ), the Cholesky factor, and the diagonal of αYᵀY.

    The pivots are 1 + δ; δ is formed without the 1, so that tiny tokens keep their digits.
    """
    gram = alpha[..., None] * jnp.einsum("...ri,...rj->...ij", y, y, precision=HIGHEST)
    if group is not None:
        gram = jnp.where(group[..., :, None] == group[..., None, :], gram, 0.0)
    factor = lax.linalg.cholesky(gram + jnp.eye(gram.shape[-1], dtype=gram.dtype), symmetrize_input=False)
    diagonal = jnp.diagonal(gram, axis1=-2, axis2=-1)
    return diagonal - jnp.sum(jnp.tril(factor, -1) ** 2, axis=-1), factor, diagonal


def sum_of_logs(logs):
    """½ Σ over the last axis, exact but for the last rounding: hundreds of terms cost digits otherwise."""
    return 0.5 * twofloat.total(logs[..., None], jnp.zeros_like(logs)[..., None])[..., 0]


def _transpose(x):
    return jnp.swapaxes(x, -1, -2)


def _norm(x):
    return jnp.sqrt(jnp.sum(x**2, axis=(-2, -1)))


def _compute(ratio, operands):
    """The value and, where `ratio` is asked for, X = Y (I + αYᵀY)⁻¹, of which α times is the gradient."""
    z, alpha, bases, group, weight = operands
    y = project(z, bases)
    wide = group is None and y.shape[-1] > y.shape[-2]
    orient = _transpose if wide else lambda x: x
    y = orient(y)
    alpha = alpha if bases is None else alpha[..., None, :]
    m = y.shape[-1]

    def value(delta):
        logs = jnp.log1p(delta)
        return sum_of_logs(logs if weight is None else weight * logs)

    delta, factor, diagonal = cholesky_pivots(y, alpha, group)
    eye = jnp.broadcast_to(jnp.eye(m, dtype=jnp.float32), factor.shape)
    inverse = lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)
    # Rounding changes A = I + αYᵀY by about 2⁻²⁴ of its diagonal, hence logdet by that times the sum of
    # a_jj (A⁻¹)_jj, the variance inflation factors. The constants are measured: over full-rank, low-rank,
    # graded, Kahan and nearly equal columns the value's error stayed below 16 times that.
    inflation = diagonal * jnp.sum(inverse**2, axis=-2)
    trusted = jnp.sum(inflation, axis=-1) <= 100 * 0.5 * jnp.sum(jnp.log1p(delta), axis=-1)
    solved = jnp.einsum("...ki,...kj->...ij", inverse, inverse, precision=HIGHEST) if ratio else None
    x = jnp.matmul(y, solved, precision=HIGHEST) if ratio else None
    if ratio:
        # The change of X is X E A⁻¹ with e_ij about 2⁻²⁴ of the root of a_ii a_jj. Its norm, measured over the
        # same columns, stayed below 40 times 2⁻²⁴ of this product, and reached that where all columns are equal.
        root = jnp.sqrt(diagonal)
        change = _norm(x * root[..., None, :]) * _norm(root[..., :, None] * solved)
        trusted &= change <= 100 * _norm(x)

    def by_cholesky():
        return (value(delta), orient(x)) if ratio else (value(delta),)

    def by_orthogonalisation():
        pair = (y, twofloat.zeros(y.shape, y)) if bases is None else map(orient, twofloat.project(z, bases))
        v, w = twofloat.orthogonalise(*pair, alpha, group)
        delta = jnp.sum((v - eye) ** 2, axis=-2) + alpha * jnp.sum(w**2, axis=-2)
        if not ratio:
            return (value(delta),)
        scaled = w / (1 + delta)[..., None, :]
        return value(delta), orient(jnp.einsum("...rk,...jk->...rj", scaled, v, precision=HIGHEST))

    return lax.cond(jnp.all(trusted), by_cholesky, by_orthogonalisation)


def batchwise(compute, rule):
    """`compute` on leading batch axes as one operation for vmap, and for sharding of the axes before the
    matrices."""
    local = custom_partitioning(compute)

    def partition(mesh, operands, results):
        # Only the batch axes (and the subspaces, the k of bases) stay sharded: a device needs whole
        # matrices.
        batch = results[0].sharding.spec
        subspaces = len(operands) == 3 and len(operands[1].shape) == 3

        def whole(array, spec):
            return NamedSharding(mesh, PartitionSpec(*spec, *[None] * (len(array.shape) - len(spec))))

        outer = batch[: len(operands[0].shape) - 2]
        specs = [outer] * len(operands)
        if subspaces:
            specs[1] = batch[len(outer) :]
        return (
            mesh,
            compute,
            tuple(whole(array, batch) for array in results),
            tuple(whole(array, spec) for array, spec in zip(operands, specs, strict=True)),
        )

    local.def_partition(partition, sharding_rule=rule)

    @custom_vmap
    def operation(*operands):
        return local(*operands)

    @operation.def_vmap
    def _(size, batched, *operands):
        if len(operands) == 3 and operands[1].ndim - batched[1] == 3 and batched[1]:
            # Bases that differ along the mapped axis are no batch of the same operation: one after the
            # other.
            def one(mapped):
                filled = iter(mapped)
                return operation(*(next(filled) if b else x for b, x in zip(batched, operands, strict=True)))

            results = lax.map(one, tuple(x for b, x in zip(batched, operands, strict=True) if b))
        else:
            shared = [len(operands) == 3 and i == 1 for i in range(len(operands))]
            results = operation(
                *(
                    x if b or s else jnp.broadcast_to(x, (size, *x.shape))
                    for x, b, s in zip(operands, batched, shared, strict=True)
                )
            )
        return results, (True,) * len(results)

    return operation


def _dispatch():
    """The operation for each kind of operands, for the value alone and for the value with X."""

    def plain(ratio, z, alpha):
        return _compute(ratio, Operands(z, alpha))

    def subspaces(ratio, z, bases, alpha):
        return _compute(ratio, Operands(z, alpha, bases))

    def groups(ratio, z, alpha, group, weight):
        return _compute(ratio, Operands(z, alpha, None, group, weight))

    rules = {
        plain: ("... n m, ... a", "...", "... n m"),
        subspaces: ("... n d, k d p, ... a", "... k", "... k n p"),
        groups: ("... r m, ... m, ... m, ... m", "...", "... r m"),
    }
    return {
        (kind.__name__, ratio): batchwise(
            functools.partial(kind, ratio), f"{given} -> {value}, {x}" if ratio else f"{given} -> {value}"
        )
        for kind, (given, value, x) in rules.items()
        for ratio in (False, True)
    }


_OPERATIONS = _dispatch()


def _run(ratio, operands):
    z, alpha, bases, group, weight = operands
    if bases is not None:
        return _OPERATIONS["subspaces", ratio](z, bases, alpha)
    if group is not None:
        return _OPERATIONS["groups", ratio](z, alpha, group, weight)
    return _OPERATIONS["plain", ratio](z, alpha)


@jax.jit
def half_logdet(operands):
    """½ logdet(I + αYᵀY) per sample `[...]`, per subspace `[..., k]` where bases are given.

    Closed-form derivative <αX, dY> + ½<X, Y>dα with X = Y(I + αYᵀY)⁻¹, itself differentiable to any order.
    """
    return _half_logdet(operands)


@jax.custom_jvp
def _half_logdet(operands):
    return _run(False, operands)[0]


@_half_logdet.defjvp
def _(primals, tangents):
    (value, _), (tangent, _) = _value_and_ratio_jvp(primals, tangents)
    return value, tangent


@jax.custom_jvp
def value_and_ratio(operands):
    """The value and X = Y(I + αYᵀY)⁻¹, shaped as Y."""
    return _run(True, operands)


@value_and_ratio.defjvp
def _value_and_ratio_jvp(primals, tangents):
    ((z, alpha, bases, group, weight),), ((dz, dalpha, dbases, *_),) = primals, tangents
    value, x = value_and_ratio(*primals)
    if bases is None:
        y, dy = z, dz
        alpha, dalpha = alpha[..., None, :], dalpha[..., None, :]
    else:
        y, dy = jax.jvp(project, (z, bases), (dz, dbases))
        alpha, dalpha = alpha[..., None, None, :], dalpha[..., None, None, :]
    slope = x * (alpha * dy + 0.5 * dalpha * y)
    tangent = jnp.sum(slope if weight is None else weight[..., None, :] * slope, axis=(-2, -1))

    orient = _transpose if group is None and y.shape[-1] > y.shape[-2] else lambda x: x
    y, dy, columns = orient(y), orient(dy), orient(x)
    within = 1.0 if group is None else (group[..., :, None] == group[..., None, :]).astype(jnp.float32)

    def gram(a, b):
        return within * jnp.matmul(_transpose(a), b, precision=HIGHEST)

    # A⁻¹ = I − αYᵀX, and dX = (dY − X dA) A⁻¹ with dA the change of I + αYᵀY.
    half = gram(dy, y)
    change = alpha * (half + _transpose(half)) + dalpha * gram(y, y)
    dx = dy - jnp.matmul(columns, change, precision=HIGHEST)
    dx = dx - jnp.matmul(dx, alpha * gram(y, columns), precision=HIGHEST)
    return (value, x), (tangent, orient(dx))
