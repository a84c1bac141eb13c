"""An ideal world: discrete events that follow each other, seen only through observations that lose nothing.

Huh et al. 2024 (arXiv 2405.07987), section 4: events z₁, z₂, … are drawn from an unknown distribution, an observer sees
obs(z_t), where obs is one to one, and learns which observations occur near each other. What can be learned from that is
the PMI of the events, whatever obs is.
"""

from typing import NamedTuple

import numpy as np

from crate_jax import InputError

# Events per spread of their places: a step leads about this far.
_REACH = 0.25
# Of all steps this part leads anywhere, however far: it bounds the PMI from below.
_JUMPS = 0.05
# The standard deviation of the logarithm of how popular an event is.
_POPULARITY = 0.5
LETTERS, LENGTH = 26, 4
SIZE = 8


class World(NamedTuple):
    """A stationary, reversible Markov chain over `n` events.

    Attributes:
      transitions: `[n, n]`, P(z_{t+1} = b | z_t = a).
      stationary: `[n]`, P(z_t = a).
    """

    transitions: np.ndarray
    stationary: np.ndarray


def make_world(events: int, *, seed: int) -> World:
    """Events at random places of a square, some more popular than others; the next event is one nearby, or seldom any.

    The weight of the pair (a, b) is w_a w_b (exp(-|x_a - x_b|²/(2 h²)) + ρ) with places x uniform in the unit square,
    log w ~ N(0, 1/4), h = 1/4, and ρ so large that one step in twenty leads anywhere; a step from a leads to b in
    proportion to it.

    Args:
      events: n, at least 5.
      seed: of the places and the popularities.
    """
    rng = np.random.default_rng(seed)
    places, popularity = rng.random((events, 2)), np.exp(_POPULARITY * rng.standard_normal(events))
    near = np.exp(-((places[:, None] - places[None]) ** 2).sum(-1) / (2 * _REACH**2))
    pairs = np.outer(popularity, popularity)
    weights = pairs * near / (pairs * near).sum() * (1 - _JUMPS) + pairs / pairs.sum() * _JUMPS
    rows = weights.sum(1)
    return World(weights / rows[:, None], rows / rows.sum())


def cooccurrence(world: World, window: int) -> np.ndarray:
    """The exact probability that two events at most `window` steps apart, but not the same moment, are a and b, `[n, n]`.

    (1/w) Σ_{τ=1}^{w} diag(π) P^τ: symmetric, for the chain is reversible.

    Args:
      world: the chain.
      window: w, at least 1.
    """
    total, power = np.zeros_like(world.transitions), np.eye(len(world.stationary))
    for _ in range(window):
        power = power @ world.transitions
        total += power
    return world.stationary[:, None] * total / window


def history(world: World, *, length: int, seed: int) -> np.ndarray:
    """A sequence of events, int64 `[length]`, that starts from the stationary distribution.

    Args:
      world: the chain.
      length: of the sequence.
      seed: of the sequence.
    """
    last = len(world.stationary) - 1
    starts, steps = np.cumsum(world.stationary), np.cumsum(world.transitions, axis=1)
    events = np.empty(length, np.int64)
    for t, draw in enumerate(np.random.default_rng(seed).random(length)):
        # Rounding may leave the last sum a little below 1.
        events[t] = min(np.searchsorted(steps[events[t - 1]] if t else starts, draw, side="right"), last)
    return events


def pair_counts(events: np.ndarray, count: int, window: int) -> np.ndarray:
    """How often two events are at most `window` steps apart, but not the same moment, in both orders: `[count, count]`.

    Args:
      events: a sequence of numbers below `count`.
      count: the number of different events.
      window: at least 1.
    """
    counts = np.zeros(count**2, np.int64)
    for lag in range(1, min(window, len(events) - 1) + 1):
        counts += np.bincount(events[:-lag] * count + events[lag:], minlength=count**2)
    square = counts.reshape(count, count)
    return (square + square.T).astype(float)


def representable(kernel: np.ndarray) -> float:
    """The least eigenvalue of a kernel on the vectors that sum to zero; if it is not negative, features f and a constant c
    with ⟨f_a, f_b⟩ = K(a, b) + c exist.

    Args:
      kernel: `[n, n]`, symmetric.

    Adding c·11ᵀ does not change these vectors' forms, and for a large c the rest is positive as well.
    """
    n = len(kernel)
    centring = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(centring @ kernel @ centring)
    # The eigenvector of ones is not among those that sum to zero.
    return float(np.delete(values, np.argmax(np.abs(vectors.sum(0)))).min())


def pictures(events: int, *, seed: int) -> np.ndarray:
    """Every event as an image of random pixels, -1 or 1: float32 `[n, 8, 8, 1]`, all different."""
    rng = np.random.default_rng(seed)
    while True:
        images = rng.integers(0, 2, (events, SIZE * SIZE))
        if len(np.unique(images, axis=0)) == events:
            return (2 * images - 1).reshape(events, SIZE, SIZE, 1).astype(np.float32)


def words(events: int, *, seed: int) -> np.ndarray:
    """Every event as a word of four random letters: int32 `[n, 4]` from 0 to 25, all different.

    Raises:
      InputError: more events than there are words.
    """
    if events > LETTERS**LENGTH:
        raise InputError(
            f"events: found {events}; accepted: at most {LETTERS**LENGTH}, the words of {LENGTH} letters"
        )
    codes = np.random.default_rng(seed).choice(LETTERS**LENGTH, events, replace=False)
    return np.stack([codes // LETTERS**place % LETTERS for place in range(LENGTH)], 1).astype(np.int32)
