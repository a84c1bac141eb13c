"""How far the second moments of each class are from a given factorisation: V-MCR²'s penalty.

The residual is a small difference of large matrices, and its square would lose the digits of a fourth power: it is formed
with twice the digits, one class at a time.
"""

import jax
import jax.numpy as jnp
from jax import lax

from crate_jax.objectives import twofloat

HIGHEST = lax.Precision.HIGHEST


def _residual(z, weight, atoms, spectrum):
    """ZᵀΠZ − ΓDiag(A)Γᵀ `[d, d]` in fp32 alone."""
    fitted = spectrum / jnp.sum(atoms**2, axis=0) * atoms
    moments = jnp.matmul(z.T, weight[:, None] * z, precision=HIGHEST)
    return moments - jnp.matmul(fitted, atoms.T, precision=HIGHEST)


def _exact_residual(z, weight, atoms, spectrum):
    """The same, rounded only at the end."""

    def outer(hi, lo, rows):
        return twofloat.add(
            twofloat.product_exactly(hi, rows),
            (jnp.matmul(lo, rows.T, precision=HIGHEST), jnp.float32(0)),
        )

    moments = outer(*twofloat.times(weight, z.T), z.T)
    share, share_lo = twofloat.divide(spectrum, twofloat.sum_of_squares(atoms, 0))
    hi, lo = twofloat.times(share, atoms)
    fitted = outer(hi, lo + share_lo * atoms, atoms)
    return sum(twofloat.add(moments, tuple(-x for x in fitted)))


@jax.custom_jvp
def _class_residual(z, weight, atoms, spectrum):
    return jnp.sum(_exact_residual(z, weight, atoms, spectrum) ** 2)


@_class_residual.defjvp
def _(primals, tangents):
    residual = _exact_residual(*primals)
    return jnp.sum(residual**2), 2 * jnp.sum(residual * jax.jvp(_residual, primals, tangents)[1])


@jax.jit
def moment_residual(z, weights, atoms, spectrum):
    """Σ_j ‖ZᵀΠ_jZ − ΓDiag(A_j)Γᵀ‖_F² for the columns Γ of `atoms` at unit length.

    z `[n, d]`, weights `[n, K]`, atoms `[d, q]`, spectrum `[q, K]`, all fp32. Time K (n + q) d², memory d².
    """
    if 0 in z.shape or 0 in atoms.shape:
        # An empty side leaves the other one; a matmul of nothing is zero.
        shares = jnp.moveaxis(jax.vmap(_residual, (None, 1, None, 1))(z, weights, atoms, spectrum), 0, -1)
        return jnp.sum(shares**2)

    # Recomputed in the backward pass, so that one class's matrices are held at a time.
    @jax.checkpoint
    def one_class(operands):
        return _class_residual(z, operands[0], atoms, operands[1])

    return jnp.sum(lax.map(one_class, (weights.T, spectrum.T)))
