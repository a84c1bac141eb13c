"""What every objective checks before it starts: the errors name the argument, what was given, what is accepted."""

import jax
import jax.numpy as jnp
import numpy as np


def floating(name, value, axes=None):
    """`value` as a floating array with at least (`axes` a string such as "n d") or exactly those trailing axes."""
    if not hasattr(value, "dtype"):
        value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"{name}: dtype {value.dtype} was given; a floating dtype (float32, bfloat16, …) is accepted"
        )
    if axes is not None:
        shape(name, value, axes)
    return value


def shape(name, value, axes):
    """Check the rank of `value`: "... n d" takes leading batch axes, "k d p" takes none."""
    names = axes.split()
    least = len(names) - (names[0] == "...")
    fits = value.ndim >= least if names[0] == "..." else value.ndim == least
    if not fits:
        raise ValueError(f"{name}: shape {tuple(value.shape)} was given; [{', '.join(names)}] is accepted")


def same_size(name, value, axis, expected, of):
    """Check one axis of `value` against the size that another argument fixes."""
    if value.shape[axis] != expected:
        raise ValueError(
            f"{name}: shape {tuple(value.shape)} was given; axis {axis} of size {expected} ({of}) is accepted"
        )


def positive(name, value):
    """Check a positive number; a traced value cannot be looked at and passes."""
    if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"{name}: {value} was given; a number greater than 0 is accepted")
    return value


def token_mask(mask, tokens):
    """The float32 token mask `[..., n]` of `tokens` `[..., n, d]`: 1 for a token, 0 for padding."""
    mask = jnp.asarray(mask)
    if mask.ndim < 1 or mask.shape[-1] != tokens.shape[-2]:
        raise ValueError(
            f"mask: shape {tuple(mask.shape)} was given; [..., {tokens.shape[-2]}] (one entry a token) is accepted"
        )
    return mask.astype(jnp.float32)
