"""The compression step that CRATE unrolls, as derived, as released and exact, so that theory and practice
can be compared.

β = p/(n ε²) and W_k = Z U_k throughout. A descent step on R^c goes Z − κ∇R^c(Z); the attention operator
replaces the gradient in three stages: Taylor expansion, softmax, free scale and output matrix.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from crate_jax.objectives import arguments
from crate_jax.objectives.coding_rate import subspace_coding_rate
from crate_jax.objectives.partition import everywhere
from crate_jax.objectives.powers import largest_exponent, shift

HIGHEST = lax.Precision.HIGHEST


@everywhere
def mssa(z, bases, output=None, *, scale=None, softmax=True, causal=False, mask=None):
    """Multi-head subspace self-attention as released, without the skip: Σ_k softmax(s W_k W_kᵀ) W_k O_k.

    One projection serves as query, key and value. In comparison with the derivation the factor p/(n ε²) is
    absorbed, s scales the scores, and O_k is free.

    Args:
      z: tokens `[..., n, d]`; matmuls run in their dtype with fp32 accumulation, the softmax in fp32.
      bases: U `[k, d, p]`. output: O `[k, p, d]`, or None for O_k = U_kᵀ.
      scale: s, by default p^-½. causal: token i attends to j ≤ i only.
      softmax: False takes the mean of the scores instead, s W_k (W_kᵀW_k)/n: work linear in n (not with causal or
        mask), and up to a factor the second-order term of `mssa_taylor_step`.
      mask: `[..., n]`, non-zero for the tokens that may be attended to.

    Returns:
      `[..., n, d]` in z's dtype. A row that may attend to nothing averages over all tokens.

    Raises:
      ValueError: shapes that do not fit, non-floating dtypes.

    Source: CRATE (arXiv 2306.01129), Eqs. 11-12 with W for p/(n ε²)[U_1 … U_K] as in Eq. 115, and Algorithm 3;
    Ma-Lab-Berkeley/CRATE `model/crate.py`.

    >>> import jax.numpy as jnp
    >>> bases = jnp.eye(4).reshape(4, 2, 2).swapaxes(0, 1)
    >>> mssa(jnp.eye(4), bases).shape
    (4, 4)
    """
    z, bases = arguments.tokens_and_bases(z, bases)
    heads, d, p = bases.shape
    bases = bases.astype(z.dtype)
    if output is None:
        output = jnp.swapaxes(bases, 1, 2)
    output = arguments.floating("output", output, "k p d")
    arguments.same_size("output", output, 0, heads, "the subspaces of bases")
    arguments.same_size("output", output, 1, p, "the dimension of each subspace")
    scale = p**-0.5 if scale is None else scale

    # One flat [d, k·p] matmul each way: faster than an einsum that carries the head axis through the
    # product.
    flat = z @ jnp.swapaxes(bases, 0, 1).reshape(d, heads * p)
    w = jnp.swapaxes(flat.reshape(*z.shape[:-1], heads, p), -3, -2)
    if not softmax and not causal and mask is None:
        gram = jnp.einsum("...ip,...iq->...pq", w, w, preferred_element_type=jnp.float32)
        mixed = w @ (gram * (scale / max(z.shape[-2], 1))).astype(z.dtype)
        return _join_heads(mixed, output)
    scores = scale * jnp.einsum("...ip,...jp->...ij", w, w, preferred_element_type=jnp.float32)
    allowed = jnp.tril(jnp.ones((z.shape[-2],) * 2, bool)) if causal else None
    if mask is not None:
        keys = arguments.token_mask(mask, z)[..., None, None, :] > 0
        allowed = keys if allowed is None else allowed & keys
    if softmax:
        if allowed is not None:
            # A large finite number: a row with nothing to attend to stays finite.
            scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
        attention = jax.nn.softmax(scores, axis=-1)
    else:
        attention = jnp.where(allowed, scores, 0) / jnp.maximum(jnp.sum(allowed, axis=-1, keepdims=True), 1)
    return _join_heads(jnp.einsum("...ij,...jp->...ip", attention.astype(z.dtype), w), output)


def _join_heads(mixed, output):
    """Σ_k H_k O_k for `[..., k, n, p]`, as one flat matmul."""
    heads, p, _ = output.shape
    flat = jnp.swapaxes(mixed, -3, -2)
    return flat.reshape(*flat.shape[:-2], heads * p) @ output.astype(mixed.dtype).reshape(heads * p, -1)


def _prepare(z, bases, eps_sq):
    z, bases = arguments.tokens_and_bases(z, bases)
    arguments.positive("eps_sq", eps_sq)
    return z.astype(jnp.float32), bases.astype(jnp.float32), bases.shape[-1] / (max(z.shape[-2], 1) * eps_sq)


def _back(heads, bases):
    """Σ_k H_k U_kᵀ: from the subspaces to tokens."""
    return jnp.einsum("...knp,kdp->...nd", heads, bases, precision=HIGHEST)


@everywhere
def mssa_gradient_step(z, bases, *, step_size, eps_sq):
    """Exact gradient step on the subspace coding rate: Z − κ∇R^c(Z; U), ∇R^c = β Σ_k W_k (I + β W_kᵀW_k)⁻¹
    U_kᵀ.

    Args:
      z: tokens `[..., n, d]`; bases: U `[k, d, p]`. step_size: κ. eps_sq: ε² > 0.

    Returns:
      `[..., n, d]` fp32.

    Raises:
      ValueError: as for `subspace_coding_rate`.

    Source: CRATE (arXiv 2306.01129), Section 2.3, Eqs. 9-10 (the step that the attention approximates).

    >>> import jax.numpy as jnp
    >>> bases = jnp.eye(4).reshape(4, 2, 2).swapaxes(0, 1)
    >>> round(float(mssa_gradient_step(jnp.eye(4), bases, step_size=0.1, eps_sq=0.5)[0, 0]), 3)
    0.95
    """
    z, bases = arguments.tokens_and_bases(z, bases)
    slope = jax.grad(lambda z: jnp.sum(subspace_coding_rate(z, bases, eps_sq=eps_sq)))(z.astype(jnp.float32))
    return z - step_size * slope


@everywhere
def mssa_taylor_step(z, bases, *, step_size, eps_sq):
    """First-order step, before any softmax: Z − κβ Σ_k (W_k − β W_k W_kᵀW_k) U_kᵀ.

    (I + βG)⁻¹ ≈ I − βG: the relative error of the step is O(β²) = O(ε⁻⁴), and for β‖G‖ ≥ 1 it is no
    approximation.

    Args, returns, raises: as for `mssa_gradient_step`.

    Source: CRATE (arXiv 2306.01129), Appendix A.2, Eqs. 67-69 (first order of the inverse's expansion).

    >>> import jax.numpy as jnp
    >>> bases = jnp.eye(4).reshape(4, 2, 2).swapaxes(0, 1)
    >>> round(float(mssa_taylor_step(jnp.eye(4), bases, step_size=0.1, eps_sq=5.0)[0, 0]), 4)
    0.991
    """
    z, bases, beta = _prepare(z, bases, eps_sq)
    w = jnp.einsum("...nd,kdp->...knp", z, bases, precision=HIGHEST)
    gram = jnp.einsum("...np,...nq->...pq", w, w, precision=HIGHEST)
    return z - step_size * beta * _back(w - beta * jnp.matmul(w, gram, precision=HIGHEST), bases)


@everywhere
def mssa_step(z, bases, *, step_size, eps_sq):
    """Compression step as derived in the paper: (1 − κβ) Z + κβ MSSA(Z), MSSA(Z) = β Σ_k softmax(W_k W_kᵀ)
    W_k U_kᵀ.

    From `mssa_taylor_step` by Σ_k U_kU_kᵀ ≈ I and a softmax in place of the Gram matrix.

    Args, returns, raises: as for `mssa_gradient_step`.

    Source: CRATE (arXiv 2306.01129), Section 2.3, Eqs. 10-12, and Appendix A.2.

    >>> import jax.numpy as jnp
    >>> bases = jnp.eye(4).reshape(4, 2, 2).swapaxes(0, 1)
    >>> mssa_step(jnp.eye(4), bases, step_size=0.1, eps_sq=0.5).shape
    (4, 4)
    """
    z, bases, beta = _prepare(z, bases, eps_sq)
    return (1 - step_size * beta) * z + step_size * beta**2 * mssa(z, bases, scale=1.0)


@everywhere
def mssa_released_step(z, bases, output=None):
    """Compression step as released, with the skip and without norm and bias: Z + Σ_k softmax(p^-½ W_k W_kᵀ)
    W_k O_k.

    With O_k = U_kᵀ and U orthonormal it moves along +Z, where ∇R^c does too: it tends to increase R^c
    (arXiv 2411.17182). `step_agreement` measures by how much.

    Args:
      z: tokens `[..., n, d]`; bases: U `[k, d, p]`; output: O `[k, p, d]` or None for U_kᵀ.

    Returns:
      `[..., n, d]` in z's dtype.

    Raises:
      ValueError: as for `mssa`.

    Source: Ma-Lab-Berkeley/CRATE `model/crate.py`; CRATE (arXiv 2306.01129), Eq. 18 and Algorithms 2-3.

    >>> import jax.numpy as jnp
    >>> bases = jnp.eye(4).reshape(4, 2, 2).swapaxes(0, 1)
    >>> mssa_released_step(jnp.eye(4), bases).shape
    (4, 4)
    """
    z, bases = arguments.tokens_and_bases(z, bases)
    return z + mssa(z, bases, output)


class StepAgreement(NamedTuple):
    """Result of `step_agreement`: cosine, norm_ratio and relative_error, each `[...]`."""

    cosine: jax.Array
    norm_ratio: jax.Array
    relative_error: jax.Array


@everywhere
def step_agreement(z, moved, reference):
    """How far one step is from another: cosine, ‖a‖/‖b‖ and ‖a − b‖/‖b‖ of a = moved − Z and b = reference −
    Z.

    Args:
      z: tokens `[..., n, d]` before the step; moved, reference: the same shape, after each step.

    Returns:
      `StepAgreement(cosine, norm_ratio, relative_error)`; the cosine is 0 where a step has length 0, the
      others inf or nan where the reference has.

    Raises:
      ValueError: shapes that differ, non-floating dtypes.

    Source: ours, to measure what arXiv 2411.17182 reports (ascent on R^c by MSSA with its skip).

    >>> import jax.numpy as jnp
    >>> z, bases = jnp.eye(4), jnp.eye(4).reshape(4, 2, 2).swapaxes(0, 1)
    >>> exact = mssa_gradient_step(z, bases, step_size=0.1, eps_sq=0.5)
    >>> round(float(step_agreement(z, mssa_released_step(z, bases), exact).cosine), 2)  # uphill
    -0.71
    """
    z = arguments.floating("z", z, "... n d").astype(jnp.float32)
    steps = []
    for name, value in (("moved", moved), ("reference", reference)):
        value = arguments.floating(name, value, "... n d")
        if value.shape != z.shape:
            raise ValueError(f"{name}: shape {value.shape} was given; {z.shape} (as z) is accepted")
        steps.append(value.astype(jnp.float32) - z)

    def norm(x):
        return jnp.sqrt(jnp.sum(x * x, axis=(-2, -1)))

    # Both over their common scale for the ratios, each over its own for the cosine: no square overflows or vanishes.
    heights = [largest_exponent(step, (-2, -1)) for step in steps]
    a, b = (shift(step, -height) for step, height in zip(steps, heights, strict=True))
    product = norm(a) * norm(b)
    cosine = jnp.sum(a * b, axis=(-2, -1)) / jnp.where(product > 0, product, 1.0)
    a = shift(a, jnp.clip(heights[0] - heights[1], -120, 120))
    return StepAgreement(cosine, norm(a) / norm(b), norm(a - b) / norm(b))
