"""What every objective checks first. Errors name the argument, what was given and what is accepted."""

import jax
import jax.numpy as jnp
import numpy as np


def floating(name, value, axes):
    """`value` as an array of a floating dtype whose axes fit `axes`: "... n d" takes leading batch axes, "d m" none.

    float64 becomes float32, as it does without `jax_enable_x64`.
    """
    value = value if isinstance(value, jax.Array | np.ndarray) else jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"{name}: dtype {value.dtype} was given; a floating dtype (float32, bfloat16) is accepted"
        )
    names = axes.split()
    batched = names[0] == "..."
    if value.ndim < len(names) - 1 if batched else value.ndim != len(names):
        raise ValueError(f"{name}: shape {tuple(value.shape)} was given; [{', '.join(names)}] is accepted")
    return value.astype(np.float32) if value.dtype == np.float64 else value


def same_size(name, value, axis, expected, of):
    """Check one axis of `value` against the size that another argument fixes."""
    if value.shape[axis] != expected:
        raise ValueError(
            f"{name}: shape {tuple(value.shape)} was given; size {expected} ({of}) on axis {axis} is accepted"
        )


def positive(name, value):
    """Check a number greater than 0; a traced value cannot be looked at and passes."""
    if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"{name}: {value} was given; a number greater than 0 is accepted")


def tokens_and_bases(z, bases):
    """Check tokens `[..., n, d]` against subspace bases `[k, d, p]`."""
    z, bases = floating("z", z, "... n d"), floating("bases", bases, "k d p")
    same_size("bases", bases, 1, z.shape[-1], "the features of z")
    return z, bases


def token_mask(mask, tokens):
    """The float32 token mask `[..., n]` of `tokens` `[..., n, d]`: 1 for a token, 0 for padding."""
    mask = jnp.asarray(mask)
    if mask.ndim < 1 or mask.shape[-1] != tokens.shape[-2]:
        raise ValueError(
            f"mask: shape {tuple(mask.shape)} was given; [..., {tokens.shape[-2]}] (one a token) is accepted"
        )
    return (mask != 0).astype(jnp.float32)


def is_labels(membership, tokens):
    """True for integer labels `[..., n]`, False for weights `[..., n, K]` whose rows sum to one; else an
    error."""
    membership = membership if isinstance(membership, jax.Array | np.ndarray) else jnp.asarray(membership)
    n = tokens.shape[-2]
    if jnp.issubdtype(membership.dtype, jnp.integer):
        if membership.ndim < 1 or membership.shape[-1] != n:
            raise ValueError(
                f"membership: labels of shape {tuple(membership.shape)} were given; [..., {n}] is accepted"
            )
        return True
    if not jnp.issubdtype(membership.dtype, jnp.floating):
        raise ValueError(
            f"membership: dtype {membership.dtype} was given; integer labels or floating weights are accepted"
        )
    if membership.ndim < 2 or membership.shape[-2] != n:
        raise ValueError(
            f"membership: weights of shape {tuple(membership.shape)} were given; [..., {n}, K] is accepted"
        )
    distribution("membership", membership)
    return False


def distribution(name, value):
    """Check non-negative entries that sum to one over the last axis, as far as float32 (or the coarser type of `value`)
    can tell; traced values cannot be looked at and pass."""
    if not isinstance(value, jax.core.Tracer):
        weights = np.asarray(value, np.float64)
        error = np.max(np.abs(weights.sum(-1) - 1), initial=0.0)
        # bfloat16 entries carry 8 bits, float32 ones 24: a few units in the last place, more of them for many entries.
        unit = max(float(jnp.finfo(value.dtype).eps), float(np.finfo(np.float32).eps))
        if not error <= unit * (8 + weights.shape[-1] ** 0.5) or np.min(weights, initial=0.0) < 0:
            raise ValueError(
                f"{name}: sums that miss one by {error:.3g}, least entry {np.min(weights, initial=0.0):.3g}, "
                "were given; non-negative entries that sum to one over the last axis are accepted"
            )
    return value
