"""The one hard number behind every coding rate: ½ logdet(I + YᵀY) in single precision."""

import jax.numpy as jnp
from jax import lax


def _gram(y):
    """The smaller of YᵀY and YYᵀ; their non-zero eigenvalues are the same."""
    equation = "...ni,...nj->...ij" if y.shape[-1] <= y.shape[-2] else "...in,...jn->...ij"
    return jnp.einsum(equation, y, y, precision=lax.Precision.HIGHEST)


def half_logdet(y):
    """½ logdet(I + YᵀY) of `[..., n, m]`, by Cholesky of the smaller Gram matrix."""
    gram = _gram(y)
    chol = lax.linalg.cholesky(gram + jnp.eye(gram.shape[-1], dtype=gram.dtype), symmetrize_input=False)
    return jnp.sum(jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)), axis=-1)
