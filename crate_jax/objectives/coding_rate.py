"""Coding rates: how many nats it takes to code tokens up to a distortion ε².

Tokens are rows: `z` is `[..., n, d]` with any leading batch axes (the papers use columns). The argument is named
`eps_sq` because it is ε²; the code released with CRATE passes ε² under the name eps.
"""

import jax.numpy as jnp
from jax import lax

from crate_jax.objectives import arguments
from crate_jax.objectives.logdet import half_logdet


def _masked(z, mask):
    """fp32 tokens with padding set to zero, and the number of tokens, shaped to multiply them."""
    z = z.astype(jnp.float32)
    if mask is None:
        return z, jnp.float32(z.shape[-2])
    mask = arguments.token_mask(mask, z)
    # max(1): a sample that is all padding has rate 0, not 0/0.
    count = jnp.maximum(jnp.sum(mask, axis=-1), 1.0)[..., None, None]
    return jnp.where(mask[..., None] > 0, z, 0.0), count


def coding_rate(z, *, eps_sq, mask=None):
    """R(Z) = ½ logdet(I + d/(n ε²) ZᵀZ), in nats."""
    z = arguments.floating("z", z, "... n d")
    arguments.positive("eps_sq", eps_sq)
    z, count = _masked(z, mask)
    return half_logdet(z * jnp.sqrt(z.shape[-1] / (count * eps_sq)))


def subspace_coding_rate(z, bases, *, eps_sq, mask=None):
    """R^c(Z; U) = ½ Σ_k logdet(I + p/(n ε²) (Z U_k)ᵀ(Z U_k)), in nats."""
    z = arguments.floating("z", z, "... n d")
    bases = arguments.floating("bases", bases, "k d p")
    arguments.same_size("bases", bases, 1, z.shape[-1], "the features of z")
    arguments.positive("eps_sq", eps_sq)
    z, count = _masked(z, mask)
    bases = bases.astype(jnp.float32)
    projections = jnp.einsum("...nd,kdp->...knp", z, bases, precision=lax.Precision.HIGHEST)
    scale = jnp.sqrt(bases.shape[-1] / (count * eps_sq))
    return jnp.sum(half_logdet(projections * (scale if mask is None else scale[..., None, :, :])), axis=-1)


def released_coding_rate(projections, *, eps_sq=0.01):
    """The layer-wise metric of the released CRATE code, one value per sample, in nats.

    projections: `[..., k, n, p]`, the tokens projected on each head's subspace (the output of the released qkv layer).
    Every token of every head is L2-normalised, then ½ Σ_k logdet(I + p/(n ε²) GramOf(head k)).
    """
    projections = arguments.floating("projections", projections, "... k n p")
    arguments.positive("eps_sq", eps_sq)
    w = projections.astype(jnp.float32)
    squares = jnp.sum(w * w, axis=-1, keepdims=True)
    # Norms are floored at 1e-12 as released, inside the root so that a zero token has a finite gradient.
    w = w * lax.rsqrt(jnp.maximum(squares, 1e-24) * (w.shape[-2] * eps_sq / w.shape[-1]))
    return jnp.sum(half_logdet(w), axis=-1)


def mean_and_std(values):
    """Mean and standard deviation (with n − 1, as released) over the batch of per-sample values `[b]`."""
    return jnp.mean(values, axis=0), jnp.std(values, axis=0, ddof=1)
