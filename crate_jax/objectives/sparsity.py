"""Sparsity: how few entries a representation uses, and the proximal steps that make it so."""

import jax.numpy as jnp
from jax import lax

from crate_jax.objectives import arguments


def nonzero_fraction(z, *, mask=None):
    """‖Z‖₀/(n d): the fraction of non-zero entries over tokens and features, per sample, in [0, 1]."""
    z = arguments.floating("z", z, "... n d")
    nonzero = jnp.mean((z != 0).astype(jnp.float32), axis=-1)
    if mask is None:
        return jnp.mean(nonzero, axis=-1)
    mask = arguments.token_mask(mask, z)
    return jnp.sum(nonzero * mask, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1.0)


def soft_threshold(z, threshold, *, nonnegative=False):
    """The proximal operator of threshold·‖z‖₁: sign(z) max(|z| − threshold, 0), or max(z − threshold, 0)."""
    if nonnegative:
        return jnp.maximum(z - threshold, 0)
    return jnp.sign(z) * jnp.maximum(jnp.abs(z) - threshold, 0)


def ista_step(z, dictionary, *, step_size, penalty, target=None, nonnegative=True):
    """One proximal gradient step on ½‖x − D a‖² + penalty·‖a‖₁ (rows: x ≈ a Dᵀ).

    z: the codes a, `[..., n, m]`; dictionary: D, `[d, m]`; target: the tokens x, `[..., n, d]`. With `target=None`
    the codes start from the tokens themselves (D square), which is the released ISTA block
    relu(z + η(zD − zDᵀD) − ηλ); D − DᵀD is formed once in fp32, so a token pays one matmul instead of three.
    """
    z = arguments.floating("z", z, "... n m")
    dictionary = arguments.floating("dictionary", dictionary, "d m")
    arguments.same_size("dictionary", dictionary, 1, z.shape[-1], "the features of z")
    if target is None:
        arguments.same_size("dictionary", dictionary, 0, z.shape[-1], "D is square where target is None")
        d = dictionary.astype(jnp.float32)
        update = d - jnp.einsum("di,dj->ij", d, d, precision=lax.Precision.HIGHEST)
        descent = jnp.einsum("...i,ij->...j", z, update.astype(z.dtype))
    else:
        target = arguments.floating("target", target, "... n d")
        arguments.same_size("target", target, -1, dictionary.shape[0], "the rows of dictionary")
        d = dictionary.astype(z.dtype)
        residual = target.astype(z.dtype) - jnp.einsum("...m,dm->...d", z, d)
        descent = jnp.einsum("...d,dm->...m", residual, d)
    # The skip and the threshold are added in fp32; only the matmul runs in z's dtype.
    moved = z.astype(jnp.float32) + step_size * descent.astype(jnp.float32)
    return soft_threshold(moved, step_size * penalty, nonnegative=nonnegative).astype(z.dtype)
