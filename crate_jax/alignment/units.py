"""Single units of two models that fire alike on the same samples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from crate_jax.alignment import arguments
from crate_jax.alignment.neighbors import partition


class Matches(NamedTuple):
    """Units that are each other's best match.

    Attributes:
      first: `[m]`, columns of a.
      second: `[m]`, columns of b.
      correlation: `[m]`.
      null: `[K]`, the highest correlation of any two units after each permutation.
    """

    first: jax.Array
    second: jax.Array
    correlation: jax.Array
    null: jax.Array


def unit_matches(a, b, orders=None) -> Matches:
    """Pairs of units whose activations correlate more with each other than with any unit of the other model.

    Args:
      a, b: activations of the same n samples, `[n, d_a]` and `[n, d_b]`. A unit that is constant matches none.
      orders: int `[K, n]`, permutations of the samples of b for the null; None: no null.
    Returns:
      `Matches`, in the order of a's columns; no d_a × d_b array is held.
    Raises:
      InputError: unequal numbers of rows, fewer than 3, NaN, constant features.

    Source: Dravid et al., Rosetta Neurons (arXiv 2306.09346), Section 3.
    """
    a, b = arguments.pair(a, b, 3)
    forth, values, back = _best(a, b)
    mutual = (back[forth] == jnp.arange(forth.size)) & (values > 0)
    first = jnp.flatnonzero(mutual)
    null = jnp.zeros(0) if orders is None else _highest(a, b, jnp.asarray(orders))
    return Matches(first, forth[first], values[first], null)


def _standardised(x):
    x = x - jnp.mean(x, axis=0)
    norm = jnp.linalg.norm(x, axis=0)
    return x / jnp.where(norm > 0, norm, 1.0)


@jax.jit
def _best(a, b):
    """For each unit of a its best match and the correlation; for each of b its best match."""
    a, b = _standardised(a), _standardised(b)
    forth, values = _rowwise(a, b)
    return forth, values, _rowwise(b, a)[0]


def _rowwise(a, b):
    width, blocks = partition(a.shape[1], b.shape[1])
    padded = jnp.pad(a, ((0, 0), (0, width * blocks - a.shape[1])))

    def block(columns):
        correlations = jnp.matmul(columns.T, b, precision=lax.Precision.HIGHEST)
        return jnp.argmax(correlations, axis=1), jnp.max(correlations, axis=1)

    parts = lax.map(block, jnp.moveaxis(padded.reshape(len(a), blocks, width), 1, 0))
    return tuple(part.reshape(-1)[: a.shape[1]] for part in parts)


@jax.jit
def _highest(a, b, orders):
    a, b = _standardised(a), _standardised(b)
    return lax.map(lambda order: jnp.max(_rowwise(a, b[order])[1]), orders)
