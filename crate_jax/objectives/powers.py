"""Powers of two beside fp32 numbers: a scale moves into an exponent without rounding, so that a square neither
overflows nor vanishes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Scale(NamedTuple):
    """The positive number `mantissa` · 4^`power`, the mantissa in [1, 4), both float32."""

    mantissa: jax.Array
    power: jax.Array


def exponent(x):
    """⌊log2 |x|⌋ as float32, exact for subnormal numbers too; −150 for 0."""
    bits = lax.bitcast_convert_type(x, jnp.int32) & 0x7FFFFFFF
    subnormal = 31 - lax.clz(bits) - 149
    return jnp.where(bits >= 0x00800000, (bits >> 23) - 127, subnormal).astype(jnp.float32)


def shift(x, power):
    """x · 2^power for whole powers (float32, |power| ≤ 378), exact unless the result leaves fp32's normal range."""
    whole = power.astype(jnp.int32)
    third = whole // 3
    # In three factors of one sign: nothing overflows or vanishes on the way to a result that does not.
    for part in (third, third, whole - 2 * third):
        x = x * lax.bitcast_convert_type((jnp.clip(part, -126, 127) + 127) << 23, jnp.float32)
    return x


def largest_exponent(x, axis):
    """The exponent of the largest magnitude over `axis`, kept as axes of size 1; a constant to autodiff. 0 where all
    are 0."""
    size = jnp.max(jnp.abs(lax.stop_gradient(x)), axis=axis, keepdims=True, initial=0.0)
    return jnp.where(size > 0, exponent(size), 0.0)


@jax.custom_jvp
def _split(x):
    bits = lax.bitcast_convert_type(x, jnp.int32)
    power = exponent(x)
    # A processor may take subnormal numbers for zero, so their digits are read as an integer.
    subnormal = shift(bits.astype(jnp.float32), -149 - power)
    return jnp.where(bits >= 0x00800000, shift(x, -power), subnormal), power


@_split.defjvp
def _(primals, tangents):
    mantissa, power = _split(*primals)
    return (mantissa, power), (shift(tangents[0], -power), jnp.zeros_like(power))


def split(x):
    """x > 0 as `(m, e)`, x = m 2^e and m in [1, 2): float32 both, for any float that Python or JAX can hold."""
    if not isinstance(x, jax.Array):
        mantissa, power = np.frexp(np.asarray(x, np.float64))
        return jnp.asarray(2 * mantissa, jnp.float32), jnp.asarray(power - 1, jnp.float32)
    if x.dtype == jnp.float64:
        power = lax.stop_gradient(jnp.floor(jnp.log2(x)))
        return (x * jnp.exp2(-power)).astype(jnp.float32), power.astype(jnp.float32)
    return _split(x.astype(jnp.float32))


def quotient(size, *divisors):
    """size / Π divisors as a `Scale`; size a Python number, the divisors positive, as they are or `split`."""
    mantissa, power = jnp.float32(size), jnp.float32(0)
    for divisor in divisors:
        part, e = divisor if isinstance(divisor, tuple) else split(divisor)
        mantissa, power = mantissa / part, power - e
    own = exponent(lax.stop_gradient(mantissa))
    half = jnp.floor((power + own) / 2)
    return Scale(shift(mantissa, power - 2 * half), half)
