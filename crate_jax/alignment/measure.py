"""What all measures have in common: prepare the features of each model once, reorder samples cheaply, compare."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from crate_jax.alignment import arguments


class Measure(NamedTuple):
    """A measure of alignment in parts, so that a permutation of samples does not start from the features again.

    `compare(prepare(a), permute(prepare(b), order))` is the score of a and `b[order]`. The functions are pure and take and
    return pytrees of arrays; a measure made twice with the same settings is the same object, which keeps jit's caches.

    Attributes:
      name: the measure's name and settings, for people.
      prepare: features `[n, d]`, float32 → whatever is worth computing once.
      permute: (prepared, order `[n]`) → what `prepare` gives for the rows in that order.
      compare: (prepared a, prepared b) → scalar.
      least: the smallest number of rows.
      check: (a, b) → None; raises for what this measure in particular cannot take.
      table: (stacked prepared layers of a, of b, orders `[K, n]`) → `[K, L_a, L_b]`, all layers at once; None: one pair
        after the other.
      chance: (prepared a, prepared b) → the exact mean score over all permutations of the samples of b; None: not known.
    """

    name: str
    prepare: Callable[[jax.Array], Any]
    permute: Callable[[Any, jax.Array], Any]
    compare: Callable[[Any, Any], jax.Array]
    least: int = 2
    check: Callable[[jax.Array, jax.Array], None] = lambda a, b: None
    table: Callable[[Any, Any, jax.Array], jax.Array] | None = None
    chance: Callable[[Any, Any], jax.Array] | None = None

    def __call__(self, a, b) -> jax.Array:
        """The score of two models' features of the same samples, `[n, d_a]` and `[n, d_b]`.

        Raises:
          InputError: other numbers of rows, too few, NaN, constant features, or settings that do not fit them.
        """
        a, b = arguments.pair(a, b, self.least)
        self.check(a, b)
        return _score(self, a, b)

    def by_chance(self, a, b) -> jax.Array | None:
        """The exact mean score over all permutations of the samples of b; None where no formula is known."""
        if self.chance is None:
            return None
        a, b = arguments.pair(a, b, self.least)
        self.check(a, b)
        return _chance(self, a, b)


@functools.partial(jax.jit, static_argnums=0)
def _score(measure, a, b):
    return measure.compare(measure.prepare(a), measure.prepare(b))


@functools.partial(jax.jit, static_argnums=0)
def _chance(measure, a, b):
    return measure.chance(measure.prepare(a), measure.prepare(b))


def reorder_rows(prepared, order):
    """`permute` of a measure whose prepared arrays have one row per sample and refer to no other sample."""
    return jax.tree.map(lambda x: x[order], prepared)


def reorder_both(matrix, order):
    """`permute` of a measure that prepares an n × n array."""
    return matrix[order][:, order]


def inner_products(a, b, orders):
    """`table` of symmetric matrices: ⟨A_i, B_j[order, order]⟩ for `[L_a, n, n]`, `[L_b, n, n]` and each order."""
    n = a.shape[1]
    # The upper triangle, twice, and the diagonal; layers side by side, so that a gather copies them together.
    row, column = jnp.triu_indices(n)
    first = (a * jnp.where(jnp.eye(n, dtype=bool), 1.0, 2.0))[:, row, column]
    second = jnp.moveaxis(b, 0, -1)

    def permuted(order):
        return jnp.matmul(first, second[order[row], order[column]], precision=lax.Precision.HIGHEST)

    return lax.map(permuted, orders)


def inverse(order):
    """The permutation that undoes `order`."""
    return jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
