"""Sparsity: how few entries a representation uses, and the proximal steps that make it so.

Codes are rows: `z` `[..., n, m]` for a dictionary D `[d, m]` (its columns the atoms), and x ≈ z Dᵀ.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from crate_jax.objectives import arguments
from crate_jax.objectives.partition import everywhere

HIGHEST = lax.Precision.HIGHEST


@everywhere
def nonzero_fraction(z, *, mask=None):
    """Fraction of non-zero entries: ‖Z‖₀/(n d).

    Args:
      z: `[..., n, d]`. mask: `[..., n]`, non-zero for tokens; n then counts the tokens only.

    Returns:
      `[...]` fp32 in [0, 1]; its gradient is zero.

    Raises:
      ValueError: z of another rank or a non-floating dtype, a mask of another length.

    Source: CRATE (arXiv 2306.01129), Figure 3 (measured on the output of each ISTA block).

    >>> import jax.numpy as jnp
    >>> float(nonzero_fraction(jnp.array([[0.0, 1.0], [0.0, 0.0]])))
    0.25
    """
    z = arguments.floating("z", z, "... n d")
    nonzero = jnp.sum((z != 0).astype(jnp.float32), axis=-1) / max(z.shape[-1], 1)
    if mask is None:
        return jnp.sum(nonzero, axis=-1) / max(z.shape[-2], 1)
    mask = jnp.broadcast_to(arguments.token_mask(mask, z), nonzero.shape)
    return jnp.sum(nonzero * mask, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1.0)


@everywhere
def l1_norm(z):
    """Sum of absolute values over tokens and features: ‖Z‖₁ = Σ |z|.

    Args:
      z: `[..., n, d]`.

    Returns:
      `[...]` fp32, ≥ 0, in the unit of z.

    Raises:
      ValueError: z of another rank or a non-floating dtype.

    Source: CRATE (arXiv 2306.01129), Section 2.4, Eq. 15.

    >>> import jax.numpy as jnp
    >>> float(l1_norm(jnp.array([[1.0, -2.0]])))
    3.0
    """
    z = arguments.floating("z", z, "... n d")
    return jnp.sum(jnp.abs(z.astype(jnp.float32)), axis=(-2, -1))


@everywhere
def hoyer(z):
    """Hoyer's sparseness of each vector: (√d − ‖z‖₁/‖z‖₂)/(√d − 1).

    Args:
      z: `[..., d]`, d ≥ 2.

    Returns:
      `[...]` fp32 in [0, 1]: 0 for equal magnitudes, 1 for a single entry, and 1 for the zero vector.

    Raises:
      ValueError: a non-floating dtype, fewer than two entries.

    Source: Hoyer, Non-negative matrix factorization with sparseness constraints (JMLR 5, 2004).

    >>> import jax.numpy as jnp
    >>> [round(float(x), 3) for x in hoyer(jnp.array([[0.0, 3.0], [1.0, -1.0]]))]
    [1.0, 0.0]
    """
    z = arguments.floating("z", z, "... d").astype(jnp.float32)
    d = z.shape[-1]
    if d < 2:
        raise ValueError(f"z: shape {z.shape} was given; at least 2 entries on the last axis are accepted")
    # Scaled to a largest magnitude of 1 first, so that squares neither overflow nor vanish.
    size = jnp.max(jnp.abs(z), axis=-1, keepdims=True)
    unit = z / jnp.where(size > 0, size, 1.0)
    norm = jnp.sqrt(jnp.where(size > 0, jnp.sum(unit**2, axis=-1, keepdims=True), 1.0))[..., 0]
    sparseness = (d**0.5 - jnp.sum(jnp.abs(unit), axis=-1) / norm) / (d**0.5 - 1)
    return jnp.where(size[..., 0] > 0, jnp.clip(sparseness, 0.0, 1.0), 1.0)


@everywhere
def soft_threshold(z, threshold, *, nonnegative=False):
    """Proximal operator of τ‖z‖₁: sign(z) max(|z| − τ, 0); with z ≥ 0 as a constraint: max(z − τ, 0).

    Args:
      z: an array of any shape. threshold: τ ≥ 0, a number or an array that broadcasts.
      nonnegative: the second form.

    Returns:
      An array of z's shape and dtype.

    Raises:
      ValueError: a non-floating dtype.

    Source: Beck and Teboulle, FISTA (SIAM J. Imaging Sciences 2, 2009); both forms in Learning Deep
    Representations of Data Distributions (book), appendix on optimization.

    >>> import jax.numpy as jnp
    >>> [float(x) for x in soft_threshold(jnp.array([-2.0, 0.5, 2.0]), 1.0)]
    [-1.0, 0.0, 1.0]
    """
    z = arguments.floating("z", z, "...")
    if nonnegative:
        return jnp.maximum(z - threshold, 0).astype(z.dtype)
    return (jnp.sign(z) * jnp.maximum(jnp.abs(z) - threshold, 0)).astype(z.dtype)


def _codes(z, dictionary, target):
    z = arguments.floating("z", z, "... n m")
    dictionary = arguments.floating("dictionary", dictionary, "d m")
    target = arguments.floating("target", target, "... n d")
    arguments.same_size("dictionary", dictionary, 1, z.shape[-1], "the features of z")
    arguments.same_size("dictionary", dictionary, 0, target.shape[-1], "the features of target")
    return z, dictionary, target


@everywhere
def lasso(z, dictionary, target, *, penalty):
    """LASSO objective: ½‖X − Z Dᵀ‖_F² + λ‖Z‖₁ (½‖x − Da‖² + λ‖a‖₁ summed over tokens).

    With the ½, `ista_step` (CRATE's Eq. 17) is its proximal gradient step; CRATE's Eqs. 15-16 print no ½, which
    would double the step's gradient.

    Args:
      z: codes `[..., n, m]`; dictionary: D `[d, m]`; target: X `[..., n, d]`. penalty: λ ≥ 0.

    Returns:
      `[...]` fp32, ≥ 0.

    Raises:
      ValueError: shapes that do not fit, non-floating dtypes.

    Source: CRATE (arXiv 2306.01129), Section 2.4, Eqs. 15-16; with the ½ in Learning Deep Representations of
    Data Distributions (book), section Unrolled Optimization for Sparse Rate Reduction.

    >>> import jax.numpy as jnp
    >>> float(lasso(jnp.ones((1, 2)), jnp.eye(2), jnp.zeros((1, 2)), penalty=0.5))
    2.0
    """
    z, dictionary, target = (x.astype(jnp.float32) for x in _codes(z, dictionary, target))
    residual = target - jnp.einsum("...nm,dm->...nd", z, dictionary, precision=HIGHEST)
    return 0.5 * jnp.sum(residual**2, axis=(-2, -1)) + penalty * l1_norm(z)


@everywhere
def ista_step(z, dictionary, *, step_size, penalty, target=None, nonnegative=True):
    """One proximal gradient step on the LASSO: prox(z + η (X − Z Dᵀ)D), threshold ηλ.

    With `target=None` the codes are the tokens themselves (D square), which is the released ISTA block
    relu(z + η(zD − zDᵀD) − ηλ) with D the weight as stored. It is computed as z(D − DᵀD): the matrix is
    formed once in fp32 and a token pays one matmul instead of three; for fewer tokens than features (one
    at a time, in decoding) as (z − zDᵀ)D, two matmuls a token and none of d × d matrices. With η ≤ 1/‖D‖₂²
    the step never increases `lasso` (the non-negative form from z ≥ 0).

    Args:
      z: codes `[..., n, m]`; matmuls run in their dtype with fp32 accumulation, the rest in fp32.
      dictionary: D `[d, m]`. step_size: η. penalty: λ. target: X `[..., n, d]` or None.
      nonnegative: constrain codes to z ≥ 0 (as in CRATE), else signed.

    Returns:
      `[..., n, m]` in z's dtype.

    Raises:
      ValueError: shapes that do not fit, non-floating dtypes.

    Source: CRATE (arXiv 2306.01129), Section 2.4, Eq. 17, and Algorithm 3; Beck and Teboulle (2009).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, -1.0]])
    >>> [round(float(x), 3) for x in ista_step(z, jnp.eye(2), step_size=0.1, penalty=0.1)[0]]
    [0.99, 0.0]
    """
    if target is None:
        z, dictionary = (
            arguments.floating("z", z, "... n d"),
            arguments.floating("dictionary", dictionary, "d d"),
        )
        for axis in (0, 1):
            arguments.same_size("dictionary", dictionary, axis, z.shape[-1], "the features of z; no target")
    else:
        z, dictionary, target = _codes(z, dictionary, target)
    if target is None and math.prod(z.shape[:-1]) >= z.shape[-1]:
        # η goes into the matrix: ηzA would be another array of all tokens in the backward pass.
        descent = z @ (step_size * _descent_matrix(dictionary.astype(jnp.float32), z.dtype)).astype(z.dtype)
    else:
        d = dictionary.astype(z.dtype)
        residual = (z if target is None else target.astype(z.dtype)) - z @ d.T
        descent = residual @ (step_size * dictionary).astype(z.dtype)
    moved = z.astype(jnp.float32) + descent.astype(jnp.float32)
    if nonnegative:
        return _rectify(moved - step_size * penalty, z.dtype)
    return soft_threshold(moved, step_size * penalty).astype(z.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _descent_matrix(d, dtype):
    """D − DᵀD in fp32, for products of tokens in `dtype`."""
    if dtype != jnp.bfloat16:
        return d - jnp.matmul(d.T, d, precision=HIGHEST)
    # DᵀD is symmetric, so that three bfloat16 products of a high and a low part are two; what is left out is 2⁻¹⁶ of it.
    high = d.astype(dtype)
    low = (d - high.astype(jnp.float32)).astype(dtype)
    mixed = jnp.matmul(high.T, low, preferred_element_type=jnp.float32)
    return d - (jnp.matmul(high.T, high, preferred_element_type=jnp.float32) + mixed + mixed.T)


def _descent_matrix_forward(d, dtype):
    return _descent_matrix(d, dtype), d


def _descent_matrix_backward(dtype, d, grad):
    """∂D = G − D (G + Gᵀ): one product, where automatic differentiation takes two."""
    both = grad + grad.T
    if dtype != jnp.bfloat16:
        return (grad - jnp.matmul(d, both, precision=HIGHEST),)
    return (grad - jnp.matmul(d.astype(dtype), both.astype(dtype), preferred_element_type=jnp.float32),)


_descent_matrix.defvjp(_descent_matrix_forward, _descent_matrix_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _rectify(x, dtype):
    return jnp.maximum(x, 0).astype(dtype)


def _rectify_forward(x, dtype):
    out = _rectify(x, dtype)
    if dtype != jnp.float32:
        # Left to itself XLA computes it again from z and the descent, two arrays, wherever it is used.
        out = lax.optimization_barrier(out)
    return out, out


def _rectify_backward(dtype, out, grad):
    """What is kept for it is the output, which the next layer keeps anyway."""
    del dtype
    return (jnp.where(out > 0, grad, 0).astype(jnp.float32),)


_rectify.defvjp(_rectify_forward, _rectify_backward)


@functools.partial(jax.jit, static_argnames=("steps", "nonnegative", "accelerated"))
def _iterate(target, dictionary, step_size, penalty, steps, nonnegative, accelerated):
    d = dictionary.astype(target.dtype)
    start = (target @ d).astype(jnp.float32)

    def step(state, _):
        z, point, t = state
        # X D is the same in every step: the residual's other half is all a step has to compute.
        descent = start - ((point.astype(target.dtype) @ d.T) @ d).astype(jnp.float32)
        new = soft_threshold(point + step_size * descent, step_size * penalty, nonnegative=nonnegative)
        if not accelerated:
            return (new, new, t), None
        later = (1 + jnp.sqrt(1 + 4 * t * t)) / 2
        return (new, new + (t - 1) / later * (new - z), later), None

    # From zero the first step needs no matmul besides X D.
    first = soft_threshold(step_size * start, step_size * penalty, nonnegative=nonnegative)
    t = jnp.float32((1 + 5**0.5) / 2)
    (z, _, _), _ = lax.scan(step, (first, first, t), None, length=steps - 1)
    return z.astype(target.dtype)


@everywhere
def ista(target, dictionary, *, steps, step_size, penalty, nonnegative=True):
    """Unrolled ISTA from zero: z⁰ = 0, zⁱ⁺¹ = prox(zⁱ + η (X − zⁱDᵀ)D), i < steps.

    Two steps with an overcomplete D are the sparsification block of CRATE-α: see `overcomplete_block`.

    Args:
      target: X `[..., n, d]`; dictionary: D `[d, m]`, overcomplete where m > d.
      steps: ≥ 1, static. step_size: η, at most 1/‖D‖₂² to converge. penalty: λ. nonnegative: as for
        `ista_step`.

    Returns:
      Codes `[..., n, m]` in target's dtype.

    Raises:
      ValueError: shapes that do not fit, non-floating dtypes, steps < 1.

    Source: Beck and Teboulle (2009); CRATE-α (arXiv 2405.20299) for two steps.

    >>> import jax.numpy as jnp
    >>> codes = ista(jnp.array([[1.0, 0.05]]), jnp.eye(2), steps=50, step_size=0.5, penalty=0.1)
    >>> [round(float(x), 3) for x in codes[0]]
    [0.9, 0.0]
    """
    return _run(target, dictionary, steps, step_size, penalty, nonnegative, False)


@everywhere
def fista(target, dictionary, *, steps, step_size, penalty, nonnegative=True):
    """Accelerated ISTA from zero: a proximal step from y = zⁱ + ((tᵢ − 1)/tᵢ₊₁)(zⁱ − zⁱ⁻¹), t₁ = 1, tᵢ₊₁ =
    (1 + √(1 + 4tᵢ²))/2.

    The objective's gap falls as 1/steps² instead of 1/steps, not monotonically.

    Args, returns, raises: as for `ista`.

    Source: Beck and Teboulle (2009), FISTA with constant step size.

    >>> import jax.numpy as jnp
    >>> codes = fista(jnp.array([[1.0, 0.05]]), jnp.eye(2), steps=50, step_size=0.5, penalty=0.1)
    >>> [round(float(x), 3) for x in codes[0]]
    [0.9, 0.0]
    """
    return _run(target, dictionary, steps, step_size, penalty, nonnegative, True)


def _run(target, dictionary, steps, step_size, penalty, nonnegative, accelerated):
    target = arguments.floating("target", target, "... n d")
    dictionary = arguments.floating("dictionary", dictionary, "d m")
    arguments.same_size("dictionary", dictionary, 0, target.shape[-1], "the features of target")
    if not (isinstance(steps, int) and steps >= 1):
        raise ValueError(f"steps: {steps} was given; an integer of at least 1 is accepted")
    return _iterate(target, dictionary, step_size, penalty, steps, nonnegative, accelerated)


@everywhere
def overcomplete_block(x, dictionary, decoder, *, step_size=0.1, penalty=0.1):
    """The sparsification block of CRATE-α (ODL) without norm and skip: D̂ z², z² two non-negative ISTA steps
    from zero.

    Args:
      x: tokens `[..., n, d]`; dictionary: D `[d, m]`; decoder: D̂ `[d, m]`, its own weight (`dictionary` to
        tie it).
      step_size, penalty: η, λ (released: 0.1 each).

    Returns:
      `[..., n, d]` in x's dtype; the block adds it to x.

    Raises:
      ValueError: as for `ista`, a decoder of another shape.

    Source: CRATE-α (arXiv 2405.20299); UCSC-VLAA/CRATE-alpha, `models/crate.py` (OvercompleteISTABlock).

    >>> import jax.numpy as jnp
    >>> x, wide = jnp.array([[1.0, -1.0]]), jnp.concatenate([jnp.eye(2), -jnp.eye(2)], axis=1)
    >>> [round(float(x), 3) for x in overcomplete_block(x, wide, wide)[0]]
    [0.171, -0.171]
    """
    codes = ista(x, dictionary, steps=2, step_size=step_size, penalty=penalty)
    decoder = arguments.floating("decoder", decoder, "d m")
    for axis in (0, 1):
        arguments.same_size("decoder", decoder, axis, dictionary.shape[axis], "as dictionary")
    return codes @ decoder.astype(codes.dtype).T
