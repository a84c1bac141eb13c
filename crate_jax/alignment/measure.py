"""What all measures have in common: prepare the features of each model once, reorder samples cheaply, compare."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
    """

    name: str
    prepare: Callable[[jax.Array], Any]
    permute: Callable[[Any, jax.Array], Any]
    compare: Callable[[Any, Any], jax.Array]
    least: int = 2
    check: Callable[[jax.Array, jax.Array], None] = lambda a, b: None

    def __call__(self, a, b) -> jax.Array:
        """The score of two models' features of the same samples, `[n, d_a]` and `[n, d_b]`.

        Raises:
          InputError: other numbers of rows, too few, NaN, constant features, or settings that do not fit them.
        """
        a, b = arguments.pair(a, b, self.least)
        self.check(a, b)
        return _score(self, a, b)


@functools.partial(jax.jit, static_argnums=0)
def _score(measure, a, b):
    return measure.compare(measure.prepare(a), measure.prepare(b))


def reorder_rows(prepared, order):
    """`permute` of a measure whose prepared arrays have one row per sample and refer to no other sample."""
    return jax.tree.map(lambda x: x[order], prepared)


def reorder_both(matrix, order):
    """`permute` of a measure that prepares an n × n array."""
    return matrix[order][:, order]


def inverse(order):
    """The permutation that undoes `order`."""
    return jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
