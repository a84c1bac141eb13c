"""What a score of alignment means: permutation nulls that repeat the maximum over layers, p-values, intervals, curves.

Raw scores are inflated by width, by depth and by taking the best of many pairs of layers (arXiv 2602.14486). A permutation
of one model's samples breaks every correspondence and leaves the rest as it was, so the same procedure on permuted samples
shows what chance gives. One permutation serves all layers, which keeps the dependence among them.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from crate_jax import InputError
from crate_jax.alignment import arguments
from crate_jax.alignment.measure import Measure

# Scores that differ by no more than this share of their size are ties: float32 sums of the same terms in another order.
TIE = 1e-6


class Calibrated(NamedTuple):
    """A score beside its null.

    Attributes:
      score: as observed.
      p: (1 + #{null ≥ score}) / (K + 1), ties counted against the score.
      z: (score − mean of the null) / its standard deviation.
      threshold: τ, the ⌈(1 − α)(K + 1)⌉-th smallest of the null and the score together.
      calibrated: max(0, (score − τ) / (best − τ)): 0 for what chance explains, 1 for the best possible score.
      null_mean: mean of the null, what chance gives.
      null_std: its standard deviation.
    """

    score: float
    p: float
    z: float
    threshold: float
    calibrated: float
    null_mean: float
    null_std: float


class Comparison(NamedTuple):
    """Two models, layer by layer.

    Attributes:
      scores: `[L_a, L_b]`.
      null: `[K, L_a, L_b]`, the scores after each permutation of the samples of b.
      best: (i, j), the pair of layers that scores highest.
      maximum: the highest score against the null of the highest score.
      pairs: `[L_a, L_b]` p-values of each pair alone, not corrected for their number.
    """

    scores: np.ndarray
    null: np.ndarray
    best: tuple[int, int]
    maximum: Calibrated
    pairs: np.ndarray


def calibrate(score: float, null, *, alpha: float = 0.05, best: float = 1.0) -> Calibrated:
    """What a score is worth beside the scores of permuted samples.

    Args:
      score: the observed score.
      null: `[K]`, the same procedure after K permutations.
      alpha: level of the threshold, above 0 and below 1.
      best: the highest score that the measure can reach (k for `lcs_knn`, 1 for the others).
    Raises:
      InputError: an empty or non-finite null, alpha out of range.

    Source: arXiv 2602.14486 for the threshold and the calibrated score; Phipson & Smyth (2010) for the p-value.

    >>> calibrate(0.5, [0.1, 0.2, 0.1, 0.2]).p
    0.2
    """
    null = np.asarray(null, np.float64).reshape(-1)
    if not null.size or not np.isfinite(null).all():
        raise InputError(f"null: {null.size} scores were given; finite scores, at least one, are accepted")
    if not 0 < alpha < 1:
        raise InputError(f"alpha: {alpha} was given; a number above 0 and below 1 is accepted")
    score = float(score)
    rank = int(np.ceil((1 - alpha) * (null.size + 1) - 1e-9))
    threshold = float(np.sort(np.append(null, score))[rank - 1])
    mean, deviation = float(null.mean()), float(null.std())
    room = best - threshold
    return Calibrated(
        score=score,
        p=float(p_values(score, null)),
        z=(score - mean) / deviation if deviation > 0 else 0.0,
        threshold=threshold,
        calibrated=max(0.0, (score - threshold) / room) if room > 0 else 0.0,
        null_mean=mean,
        null_std=deviation,
    )


def p_values(scores, null) -> np.ndarray:
    """(1 + #{null ≥ score}) / (K + 1) for scores of any shape and a null with one axis more in front."""
    scores, null = np.asarray(scores, np.float64), np.asarray(null, np.float64)
    reached = null >= scores - TIE * np.abs(scores)
    return (1 + reached.sum(axis=0)) / (len(null) + 1)


def permutations(n: int, count: int, seed: int = 0) -> np.ndarray:
    """`count` random orders of n samples, int32 `[count, n]`; a function of the arguments alone."""
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(n).astype(np.int32) for _ in range(count)])


def score_table(measure: Measure, layers_a: Sequence, layers_b: Sequence) -> np.ndarray:
    """The score of every layer of one model with every layer of the other, `[L_a, L_b]`.

    Args:
      measure: from `alignment.measure`.
      layers_a, layers_b: features of the same n samples, `[n, d]` each, of any widths.
    Raises:
      InputError: no layers, or what the measure raises; the message names the layer.
    """
    a, b = prepare(measure, layers_a, layers_b)
    orders = jnp.arange(len(layers_a[0]), dtype=jnp.int32)[None]
    return table(measure, a, b, orders)[0]


def compare_layers(
    measure: Measure,
    layers_a: Sequence,
    layers_b: Sequence,
    *,
    permutations: int | np.ndarray = 500,
    seed: int = 0,
    alpha: float = 0.05,
    best: float = 1.0,
) -> Comparison:
    """Scores of all pairs of layers, and their maximum against what the same maximum is after permuting samples.

    Args:
      measure, layers_a, layers_b: as for `score_table`.
      permutations: their number K, or int `[K, n]` orders.
      seed: of the permutations.
      alpha, best: as for `calibrate`.
    Raises:
      InputError: as `score_table` and `calibrate`.
    """
    a, b = prepare(measure, layers_a, layers_b)
    orders = _orders(permutations, len(layers_a[0]), seed)
    identity = np.arange(orders.shape[1], dtype=np.int32)[None]
    scores, null = np.split(table(measure, a, b, np.concatenate([identity, orders])), [1])
    scores, place = scores[0], int(scores.argmax())
    highest = calibrate(scores.max(), null.max(axis=(1, 2)), alpha=alpha, best=best)
    i, j = divmod(place, scores.shape[1])
    return Comparison(scores, null, (i, j), highest, p_values(scores, null))


def interval(
    measure: Measure,
    layers_a: Sequence,
    layers_b: Sequence,
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval of the highest score over pairs of layers (of the score, where each model has one layer).

    Each resample takes half of the samples without replacement, whose mean varies as that of an ordinary bootstrap does,
    and repeats the whole procedure. Drawing with replacement would make copies of a sample each other's nearest neighbours.
    As a score depends on n, the resampled scores are moved to the observed one, and only their spread is used.

    Args:
      measure, layers_a, layers_b: as for `score_table`.
      resamples: how often.
      level: what share of such intervals should cover.
      seed: of the draw.
    Returns:
      (low, high).
    Raises:
      InputError: as `score_table`, on half of the samples too.

    Source: Præstgaard & Wellner, Annals of Probability 21 (1993), for resampling halves.
    """
    if not 0 < level < 1 or resamples < 2:
        raise InputError(
            f"level, resamples: {level}, {resamples} were given; above 0 and below 1, at least 2 are accepted"
        )
    n = len(layers_a[0])
    observed = score_table(measure, layers_a, layers_b).max()
    halves = np.sort(permutations(n, resamples, seed)[:, : n // 2], axis=1)
    found = []
    for half in halves:
        a, b = ([np.asarray(layer)[half] for layer in layers] for layers in (layers_a, layers_b))
        found.append(score_table(measure, a, b).max())
    spread = np.asarray(found) - np.mean(found)
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2])
    return float(observed + low), float(observed + high)


def prepare(measure: Measure, layers_a: Sequence, layers_b: Sequence) -> tuple[list, list]:
    """What the measure prepares of each layer of two models, after checking them all."""
    checked = []
    for name, layers in (("a", layers_a), ("b", layers_b)):
        if not len(layers):
            raise InputError(f"{name}: no layers were given; at least one is accepted")
        labels = [f"layer {i} of {name}" if len(layers) > 1 else name for i in range(len(layers))]
        checked.append(
            [arguments.features(label, x, measure.least) for label, x in zip(labels, layers, strict=True)]
        )
    sizes = sorted({len(x) for layers in checked for x in layers})
    if len(sizes) > 1:
        raise InputError(
            f"a, b: layers of {', '.join(map(str, sizes))} rows were given; "
            "the same samples in the same order are accepted"
        )
    for x in checked[0]:
        for y in checked[1]:
            measure.check(x, y)
    return tuple([_prepare(measure, x) for x in layers] for layers in checked)


def table(measure: Measure, a: list, b: list, orders) -> np.ndarray:
    """`[K, L_a, L_b]`: scores of all layers for each order of the samples of b.

    Where the measure says how, all layers are done at once; else one pair after the other.
    """
    if measure.table is not None and _stackable(a) and _stackable(b):
        stacked = (jax.tree.map(lambda *x: jnp.stack(x), *prepared) for prepared in (a, b))
        return np.asarray(_table(measure, *stacked, jnp.asarray(orders)))
    rows = [[_nulls(measure, x, y, jnp.asarray(orders)) for y in b] for x in a]
    return np.moveaxis(np.asarray(rows), 2, 0)


def _stackable(prepared):
    return len({tuple(x.shape for x in jax.tree.leaves(one)) for one in prepared}) == 1


@functools.partial(jax.jit, static_argnums=0)
def _prepare(measure, x):
    return measure.prepare(x)


@functools.partial(jax.jit, static_argnums=0)
def _table(measure, a, b, orders):
    return measure.table(a, b, orders)


@functools.partial(jax.jit, static_argnums=0)
def _nulls(measure, a, b, orders):
    return lax.map(lambda order: measure.compare(a, measure.permute(b, order)), orders)


def _orders(given, n, seed):
    if isinstance(given, int | np.integer):
        if given < 1:
            raise InputError(f"permutations: {given} was given; at least 1 is accepted")
        return permutations(n, int(given), seed)
    orders = np.asarray(given, np.int32)
    if orders.ndim != 2 or not np.array_equal(
        np.sort(orders, axis=1), np.broadcast_to(np.arange(n), orders.shape)
    ):
        raise InputError(
            f"permutations: shape {orders.shape} was given; [K, {n}] orders of the samples are accepted"
        )
    return orders
