"""What every measure of alignment checks first. Errors name the argument, what was given and what is accepted."""

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import InputError


def features(name, value, least=2):
    """`value` as float32 features `[n, d]`: at least `least` rows, finite, not all rows the same.

    The values of a traced array cannot be looked at and pass.
    """
    value = value if isinstance(value, jax.Array | np.ndarray) else np.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise InputError(
            f"{name}: dtype {value.dtype} was given; a floating dtype (float32, bfloat16) is accepted"
        )
    if value.ndim != 2 or value.shape[1] < 1:
        raise InputError(
            f"{name}: shape {tuple(value.shape)} was given; [n, d] is accepted, one row per sample"
        )
    if value.shape[0] < least:
        raise InputError(f"{name}: {value.shape[0]} rows were given; at least {least} are accepted")
    value = jnp.asarray(value, jnp.float32)
    if not isinstance(value, jax.core.Tracer):
        finite, constant = _look_at(value)
        if not finite:
            raise InputError(f"{name}: NaN or infinite entries were given; finite float32 is accepted")
        if constant:
            raise InputError(
                f"{name}: constant features were given (all {value.shape[0]} rows are the same); "
                "rows that differ are accepted"
            )
    return value


def pair(a, b, least=2):
    """Features of the same samples from two models: `[n, d_a]` and `[n, d_b]`."""
    a, b = features("a", a, least), features("b", b, least)
    if a.shape[0] != b.shape[0]:
        raise InputError(
            f"a, b: {a.shape[0]} and {b.shape[0]} rows were given; "
            "the same samples in the same order are accepted"
        )
    return a, b


def neighbor_count(k, n):
    """A number of neighbours among n samples, the sample itself not counted."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k < n:
        raise InputError(f"k: {k} was given for {n} rows; a whole number from 1 to {n - 1} is accepted")
    return int(k)


def one_of(name, value, accepted):
    """A word that must be one of a few."""
    if value not in accepted:
        raise InputError(f"{name}: {value!r} was given; {', '.join(map(repr, accepted))} is accepted")
    return value


@jax.jit
def _look_at(value):
    return jnp.all(jnp.isfinite(value)), jnp.all(value == value[:1])
