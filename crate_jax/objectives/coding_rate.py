"""Coding rates: how many nats it takes to code tokens up to a squared distortion ε².

Tokens are rows: `z` is `[..., n, d]` with any leading batch axes (the papers use columns). The argument is
named `eps_sq` because it is ε²; the code released with CRATE, and with SimDINO, passes ε² under the name
eps.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from crate_jax.objectives import arguments
from crate_jax.objectives.logdet import Operands, half_logdet, log1p, value_and_slope
from crate_jax.objectives.partition import batchwise, everywhere
from crate_jax.objectives.powers import Scale, largest_exponent, quotient, shift, split


def _tokens(z, mask):
    """fp32 tokens with padding set to zero, and their number `[..., 1]`."""
    z = z.astype(jnp.float32)
    if mask is None:
        return z, jnp.full((*z.shape[:-2], 1), max(z.shape[-2], 1), jnp.float32)
    mask = jnp.broadcast_to(arguments.token_mask(mask, z), z.shape[:-1])
    # max(1): a sample that is all padding has rate 0, not 0/0.
    return jnp.where(mask[..., None] > 0, z, 0.0), jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1.0)


@everywhere
def coding_rate(z, *, eps_sq, mask=None):
    """Coding rate of tokens: R(Z) = ½ logdet(I + d/(n ε²) ZᵀZ).

    Args:
      z: tokens `[..., n, d]`, any floating dtype; computed in fp32.
      eps_sq: ε² > 0, the squared distortion.
      mask: `[..., n]`, non-zero for tokens, zero for padding; n then counts the tokens only.

    Returns:
      `[...]` fp32, nats, ≥ 0. For any rank, token norms from 1e-6 to 1e25 and ε² from 1e-40 to 1e30 it is
      right to 1e-4 of its value, and its gradient d/(n ε²) Z (I + d/(n ε²) ZᵀZ)⁻¹ to 1e-3 of its norm
      (measured: 1e-4 and better). The gradient is in closed form and differentiable to any order; second
      derivatives lose digits as the norm over ε grows.

      What fp32 cannot hold becomes 0 or inf: a rate or a gradient below 1e-38 (a token of norm 1e-6 at
      ε² = 1e33), and the derivative by ε², at most −rank/(2ε²), where ε² is below 1e-38. Columns (or tokens, where they are
      fewer) that depend on others to 11 digits count as dependent, which a rate shows where the norm is more than 1e9 ε.

    Raises:
      ValueError: z of another rank or a non-floating dtype, eps_sq ≤ 0, a mask of another length.

    Source: CRATE (arXiv 2306.01129), Section 2.3, Eq. 7; Yu et al., MCR² (arXiv 2006.08558) and its code
    (ryanchankh/mcr2, `loss.py`).

    >>> import jax.numpy as jnp
    >>> round(float(coding_rate(jnp.eye(4), eps_sq=0.5)), 4)  # 4 directions: ½ · 4 log(1 + 1/0.5)
    2.1972
    """
    z = arguments.floating("z", z, "... n d")
    arguments.positive("eps_sq", eps_sq)
    z, count = _tokens(z, mask)
    return half_logdet(Operands(z, quotient(z.shape[-1], count, eps_sq)))


@everywhere
def subspace_coding_rate(z, bases, *, eps_sq, mask=None):
    """Coding rate of tokens against k subspaces: R^c(Z; U) = ½ Σ_k logdet(I + p/(n ε²) (Z U_k)ᵀ(Z U_k)).

    Args:
      z: tokens `[..., n, d]`; bases: `[k, d, p]`, the papers' U_1 … U_K (orthonormal columns in theory, any
        here).
      eps_sq, mask: as for `coding_rate`.

    Returns:
      `[...]` fp32, nats, ≥ 0; accuracy as for `coding_rate`, no n × n array where n > p.

    Raises:
      ValueError: as for `coding_rate`, and bases that are not `[k, d, p]`.

    Source: CRATE (arXiv 2306.01129), Section 2.3, Eq. 8; measured per layer in its Figure 3.

    >>> import jax.numpy as jnp
    >>> z = jnp.eye(4)
    >>> bases = jnp.eye(4).reshape(4, 2, 2).swapaxes(0, 1)  # two planes of two axes each
    >>> round(float(subspace_coding_rate(z, bases, eps_sq=0.5)), 4)
    1.3863
    """
    z, bases = arguments.tokens_and_bases(z, bases)
    arguments.positive("eps_sq", eps_sq)
    z, count = _tokens(z, mask)
    alpha = quotient(bases.shape[-1], count, eps_sq)
    return jnp.sum(half_logdet(Operands(z, alpha, bases.astype(jnp.float32))), axis=-1)


@jax.jit
def _labelled_rate(z, labels, eps_sq, mask):
    count = jnp.einsum(
        "...ij,...j->...i", (labels[..., :, None] == labels[..., None, :]).astype(jnp.float32), mask
    )
    weight = count / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1.0)
    # Padding is a column of zeros, which costs nothing whatever its count.
    alpha = quotient(z.shape[-1], jnp.maximum(count, 1.0), eps_sq)
    return half_logdet(Operands(jnp.swapaxes(z, -1, -2), alpha, None, labels, weight))


def _rooted(z, root, count, eps_sq, tokens):
    """One class's term for the roots of its weights and their sum."""
    alpha = quotient(z.shape[-1], jnp.where(count > 0, count, 1.0), eps_sq)
    return (count / tokens)[..., 0] * half_logdet(Operands(root[..., None] * z, alpha))


@jax.custom_jvp
def _class_term(z, weight, eps_sq, tokens):
    return _rooted(z, jnp.sqrt(weight), jnp.sum(weight, axis=-1, keepdims=True), eps_sq, tokens)


@_class_term.defjvp
def _(primals, tangents):
    """The weights enter the determinant linearly, their roots do not: a root's slope at 0 is infinite and what it leads to
    is 0. Where a weight is (nearly) 0 the slope is taken beside it, where it adds 1e-10 to αz zᵀ."""
    (z, weight, eps_sq, tokens), (dz, dweight, deps_sq, dtokens) = primals, tangents
    count, dcount = (jnp.sum(x, axis=-1, keepdims=True) for x in (weight, dweight))
    scale = quotient(z.shape[-1], jnp.where(count > 0, count, 1.0), eps_sq)
    height = largest_exponent(z, -1)[..., 0]
    least = shift(jnp.full_like(weight, 1e-5), -jnp.maximum(scale.power + height, 0.0))
    root = jnp.maximum(jnp.sqrt(weight), least)
    value, tangent = jax.jvp(
        _rooted, (z, root, count, eps_sq, tokens), (dz, 0.5 * dweight / root, dcount, deps_sq, dtokens)
    )
    # An empty class that receives the token z: (n_j/2n) log(1 + d/ε² ‖z‖²), for n_j from 0 on.
    mantissa, power = quotient(z.shape[-1], eps_sq)
    square = mantissa * jnp.sum(shift(z, -height[..., None]) ** 2, axis=-1)
    first = jnp.sum(dweight * 0.5 * log1p(square, power + height), axis=-1) / tokens[..., 0]
    return value, jnp.where(count[..., 0] > 0, tangent, first)


@jax.jit
def _weighted_rate(z, weights, eps_sq, tokens):
    # Recomputed in the backward pass: stored, K copies of the tokens would outgrow everything else.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one_class(weight):
        return _class_term(z, weight, eps_sq, tokens)

    if 0 in weights.shape:
        return jnp.zeros(z.shape[:-2], jnp.float32)
    # Tokens of order one, their scale in ε²: the slope by a weight of 0 divides by what it has put beside it.
    height = largest_exponent(z, (-2, -1))
    z, eps_sq = shift(z, -height), (eps_sq[0], eps_sq[1] - 2 * height[..., 0])
    weights = jnp.broadcast_to(weights, (*z.shape[:-1], weights.shape[-1]))
    return jnp.sum(lax.map(one_class, jnp.moveaxis(weights, -1, 0)), axis=0)


@everywhere
def class_coding_rate(z, membership, *, eps_sq, mask=None):
    """Average coding rate of the classes of MCR²: R_c(Z | Π) = Σ_j (n_j/2n) logdet(I + d/(n_j ε²) Zᵀ Π_j Z),
    n_j = tr Π_j.

    Args:
      z: tokens or features `[..., n, d]`.
      membership: integer labels `[..., n]`, or weights `[..., n, K]` whose rows sum to one (hard or soft).
        With labels all classes are one block-diagonal determinant: n²d + n³/3 work and n × n memory whatever
        the number of classes, the faster way up to n ≈ 3√K·d. With weights the classes are gone through one
        at a time (no Python loop): K·n·d² work, d × d memory.
      eps_sq, mask: as for `coding_rate`.

    Returns:
      `[...]` fp32, nats, 0 ≤ R_c ≤ R; accuracy as for `coding_rate` (with soft weights, whose roots are
      rounded, for norms up to 1e3 ε). The gradient by weights is right at weights of 0 too: it is the
      one-sided derivative, for an empty class log(1 + d‖z_i‖²/ε²)/(2n), always finite, and within 1 % of it.

    Raises:
      ValueError: as for `coding_rate`; a membership of another shape or dtype, or whose rows do not sum to
        one.

    Source: MCR² (arXiv 2006.08558) and its code (ryanchankh/mcr2, `loss.py`).

    >>> import jax.numpy as jnp
    >>> z, labels = jnp.eye(4), jnp.array([0, 0, 1, 1])
    >>> round(float(class_coding_rate(z, labels, eps_sq=0.5)), 4)
    1.6094
    >>> round(float(class_coding_rate(z, jnp.eye(2)[labels], eps_sq=0.5)), 4)
    1.6094
    """
    z = arguments.floating("z", z, "... n d")
    labelled = arguments.is_labels(membership, z)
    arguments.positive("eps_sq", eps_sq)
    mask = None if mask is None else jnp.broadcast_to(arguments.token_mask(mask, z), z.shape[:-1])
    z, count = _tokens(z, mask)
    if labelled:
        labels = jnp.broadcast_to(membership, z.shape[:-1])
        ones = jnp.ones(z.shape[:-1], jnp.float32)
        return _labelled_rate(z, labels, split(eps_sq), ones if mask is None else mask)
    weights = jnp.asarray(membership, jnp.float32)
    return _weighted_rate(z, weights if mask is None else weights * mask[..., None], split(eps_sq), count)


def _unit_tokens(y):
    """The tokens at unit length; a zero token stays zero, with a finite gradient."""
    y = shift(y, -largest_exponent(y, -1))
    return y * (1 / jnp.sqrt(jnp.maximum(jnp.sum(y * y, axis=-1, keepdims=True), 1e-24)))


def _unit_rates(y, *alpha):
    """½ logdet(I + αVᵀV) `[...]`, V the rows of y `[..., n, p]` at unit length."""
    return value_and_slope(False, Operands(_unit_tokens(y), Scale(*alpha)))[0]


def _unit_rates_in_pieces(y, *alpha):
    """The same, for as many matrices at a time as a processor's cache holds.

    The normalised copy of everything would cost a CPU as much as the Gram matrices do, most of it to fetch
    memory that is new at every call. Pieces are equal: a rest beside the loop would be a second batch of
    Cholesky factorisations at the same time, which can deadlock (docs/objectives.md).
    """
    (*batch, n, p), count = y.shape, math.prod(y.shape[:-2])
    largest = max(1, min(count, 2**20 // max(n * p, 1)))  # 4 MB of tokens
    piece = next(size for size in range(largest, 0, -1) if count % size == 0)
    pieces = (y.reshape(-1, piece, n, p), *(x.reshape(-1, piece, 1) for x in alpha))
    return lax.map(lambda operands: _unit_rates(*operands), pieces).reshape(batch)


def _unit_rates_of_a_device(y, *alpha):
    return (lax.platform_dependent(y, *alpha, cpu=_unit_rates_in_pieces, default=_unit_rates),)


_UNIT_RATES = batchwise(_unit_rates_of_a_device, "... n p, ... a, ... b -> ...")


@jax.custom_jvp
def _unit_rates_by_device(y, mantissa, power):
    return _UNIT_RATES(y, mantissa, power)[0]


@_unit_rates_by_device.defjvp
def _(primals, tangents):
    def whole(y, *alpha):
        return half_logdet(Operands(_unit_tokens(y), Scale(*alpha)))

    return jax.jvp(whole, primals, tangents)


@jax.jit
def _released_rate(y, eps_sq):
    if 0 in y.shape:
        return jnp.zeros(y.shape[:-3], jnp.float32)
    alpha = quotient(y.shape[-1], jnp.full((*y.shape[:-2], 1), y.shape[-2], jnp.float32), eps_sq)
    return jnp.sum(_unit_rates_by_device(y, *alpha), axis=-1)


@everywhere
def released_coding_rate(projections, *, eps_sq=0.01):
    """The layer-wise metric of the released CRATE code: Σ_k ½ logdet(I + p/(n ε²) V_kᵀV_k), V_k unit-norm
    tokens.

    It differs from `subspace_coding_rate` in two ways: every token of every head is L2-normalised first, and
    it is meant for the output of the projection (`qkv`) of a layer, that is Uᵀ LN(Z) at the layer's input.

    Args:
      projections: `[..., k, n, p]`, tokens projected on each head's subspace.
      eps_sq: ε², at least 1e-5 p (released: 0.01, passed as `eps`).

    Returns:
      `[...]` fp32, nats, one value per sample, at most (k p/2) log(1 + 1/ε²). See `mean_and_std` for the
      batch. Accuracy as for `coding_rate`, whatever the length of the tokens. A zero token counts as zero (the
      released code divides by its norm and returns nan).

    Raises:
      ValueError: projections of another rank or dtype, eps_sq < 1e-5 p.

    Source: Ma-Lab-Berkeley/CRATE, `vis_utils/coding_rate.py` (the formula) and `vis_utils/crate_hook.py`
    (where it is taken); CRATE (arXiv 2306.01129), Figure 3.

    >>> import jax.numpy as jnp
    >>> round(float(released_coding_rate(jnp.eye(4)[None], eps_sq=0.01)), 3)
    9.23
    """
    projections = arguments.floating("projections", projections, "... k n p")
    p = projections.shape[-1]
    if not isinstance(eps_sq, jax.core.Tracer) and not eps_sq >= 1e-5 * p:
        raise ValueError(
            f"eps_sq: {eps_sq} was given; at least {1e-5 * p:.3g} (1e-5 times p = {p}) is accepted"
        )
    return _released_rate(projections.astype(jnp.float32), split(eps_sq))


@everywhere
def mean_and_std(values):
    """Mean and standard deviation over the batch: Σv/b and (Σ(v − mean)²/(b − 1))^½, as the released metric
    reports.

    Args:
      values: `[b, ...]`, for example of `released_coding_rate`; b = 1 gives a standard deviation of nan.

    Returns:
      Two arrays `[...]` in the unit of the values.

    Raises:
      ValueError: values without a batch axis or of a non-floating dtype.

    Source: Ma-Lab-Berkeley/CRATE, `vis_utils/coding_rate.py`.

    >>> import jax.numpy as jnp
    >>> [float(x) for x in mean_and_std(jnp.array([1.0, 3.0, 5.0]))]
    [3.0, 2.0]
    """
    values = arguments.floating("values", values, "... b")
    return jnp.mean(values, axis=0), jnp.std(values, axis=0, ddof=1)
