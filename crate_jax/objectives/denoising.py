"""Attention as denoising: the score of a mixture of low-dimensional Gaussians and its closed-form denoising
step.

Tokens are z = x + σw with x drawn from Σ_k π_k N(0, U_kU_kᵀ), U_k orthonormal, w standard normal, so that
z ~ Σ_k π_k N(0, U_kU_kᵀ + σ²I). Everything below is exact for that model at every σ. CRATE's Eq. 6 is the
limit of small σ and equal π: softmax_k(‖U_kᵀz‖²/(2σ²)), and no factor 1/(1 + σ²) before the sum.
"""

import jax.numpy as jnp
from jax import lax

from crate_jax.objectives import arguments
from crate_jax.objectives.partition import everywhere


@everywhere
def subspace_posterior(z, bases, *, noise_std, weights=None):
    """Posterior over the subspaces of each token: softmax_k(log π_k + ‖U_kᵀz‖²/(2σ²(1 + σ²))).

    The components share one determinant (equal p), so it is an attention whose keys are subspaces.

    Args:
      z: tokens `[..., n, d]`; bases: U `[k, d, p]`, orthonormal columns (not checked).
      noise_std: σ > 0. weights: π `[k]`, summing to one; None for equal ones.

    Returns:
      `[..., n, k]` fp32, rows summing to one.

    Raises:
      ValueError: shapes or dtypes that do not fit, noise_std ≤ 0, weights that do not sum to one.

    Source: Learning Deep Representations of Data Distributions (book), section Compression via Denoising;
    CRATE (arXiv 2306.01129), Section 2.2 and Appendix A.1 (approximated).

    >>> import jax.numpy as jnp
    >>> bases = jnp.eye(4).reshape(4, 2, 2).swapaxes(0, 1)
    >>> [round(float(x), 3) for x in subspace_posterior(jnp.eye(4)[:1], bases, noise_std=0.5)[0]]
    [0.832, 0.168]
    """
    return _posterior(z, bases, noise_std, weights)[0]


def _posterior(z, bases, noise_std, weights):
    z, bases = arguments.tokens_and_bases(z, bases)
    arguments.positive("noise_std", noise_std)
    z, bases = z.astype(jnp.float32), bases.astype(jnp.float32)
    projections = jnp.einsum("...nd,kdp->...nkp", z, bases, precision=lax.Precision.HIGHEST)
    if weights is not None:
        weights = arguments.distribution("weights", arguments.floating("weights", weights, "k"))
        arguments.same_size("weights", weights, 0, bases.shape[0], "the subspaces of bases")
        weights = weights.astype(jnp.float32)
    # Differences of squares of projections with a largest entry of order one, so that they do not overflow.
    size = jnp.maximum(jnp.max(jnp.abs(lax.stop_gradient(projections)), axis=(-2, -1), initial=0.0), 1e-30)
    squares = jnp.sum((projections / size[..., None, None]) ** 2, axis=-1)
    # At most 1e15 of them: e to the power of −1e15 is 0 already.
    ratio = jnp.minimum(size / noise_std, 1e15)
    scores = squares * (ratio**2 / (2 * (1 + noise_std**2)))[..., None]
    possible = scores if weights is None else jnp.where(weights > 0, scores, -jnp.inf)
    best = lax.stop_gradient(jnp.max(possible, axis=-1, keepdims=True, initial=-jnp.inf))
    # π multiplies, so that its gradient at 0 is that of a probability and not of a logarithm.
    shares = jnp.exp(jnp.minimum(scores - best, 80.0)) * (1.0 if weights is None else weights)
    return shares / jnp.sum(shares, axis=-1, keepdims=True), projections, bases


@everywhere
def mixture_denoise(z, bases, *, noise_std, weights=None):
    """Closed-form denoising, the posterior mean: E[x | z] = (1/(1 + σ²)) Σ_k w_k(z) U_kU_kᵀz, w =
    `subspace_posterior`.

    Args, raises: as for `subspace_posterior`.

    Returns:
      `[..., n, d]` fp32. As σ → 0 it projects on the best subspace.

    Source: Learning Deep Representations of Data Distributions (book), section Compression via Denoising;
    CRATE (arXiv 2306.01129), Section 2.2, Eq. 6 (approximated).

    >>> import jax.numpy as jnp
    >>> bases = jnp.eye(4).reshape(4, 2, 2).swapaxes(0, 1)
    >>> z = jnp.arange(4.0)[None]
    >>> [round(float(x), 2) for x in mixture_denoise(z, bases, noise_std=0.1)[0]]
    [0.0, 0.0, 1.98, 2.97]
    """
    posterior, projections, bases = _posterior(z, bases, noise_std, weights)
    heads = posterior[..., None] * projections
    return jnp.einsum("...nkp,kdp->...nd", heads, bases, precision=lax.Precision.HIGHEST) / (1 + noise_std**2)


@everywhere
def mixture_score(z, bases, *, noise_std, weights=None):
    """Score of the mixture: ∇_z log Σ_k π_k N(z; 0, U_kU_kᵀ + σ²I) = (E[x | z] − z)/σ².

    Args, raises: as for `subspace_posterior`.

    Returns:
      `[..., n, d]` fp32.

    Source: CRATE (arXiv 2306.01129), Section 2.2, Eq. 5 (Tweedie's formula) and Appendix A.1.

    >>> import jax.numpy as jnp
    >>> bases = jnp.eye(4).reshape(4, 2, 2).swapaxes(0, 1)
    >>> [round(float(x), 2) for x in mixture_score(jnp.ones((1, 4)), bases, noise_std=1.0)[0]]
    [-0.75, -0.75, -0.75, -0.75]
    """
    shrunk = mixture_denoise(z, bases, noise_std=noise_std, weights=weights)
    # E[x | z] is m/(1 + σ²): (z − m)/σ² and m/(1 + σ²) apart, so that a small σ does not magnify the rounding of both.
    mean = shrunk * (1 + noise_std**2)
    return (
        -(arguments.floating("z", z, "... n d").astype(jnp.float32) - mean) / noise_std / noise_std - shrunk
    )
