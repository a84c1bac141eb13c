"""Two models compared layer by layer: scores, what chance gives, and how both change with the number of samples."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from crate_jax import InputError, alignment
from crate_jax.alignment import Comparison, Measure
from crate_jax.analysis.representations import Representation

# Of permutations and of resamples where there are many comparisons beside the main one.
FEW = 100


@dataclasses.dataclass(frozen=True)
class Point:
    """The highest score over layers at one number of samples: mean over disjoint parts, and what chance gives."""

    samples: int
    score: float
    null_mean: float
    threshold: float
    parts: int


@dataclasses.dataclass(frozen=True)
class Result:
    """What one measure says of two models.

    Attributes:
      measure: its name and settings.
      models: the two names.
      compared: scores, null, calibrated maximum.
      interval: 95 % bootstrap interval of the maximum, or None.
      chance: the exact mean of the best pair's score over all permutations, or None where no formula is known. The null of
        the maximum over layers lies higher.
      curve: one point per number of samples.
    """

    measure: str
    models: tuple[str, str]
    layers: tuple[list[str], list[str]]
    samples: int
    compared: Comparison
    interval: tuple[float, float] | None
    chance: float | None
    curve: list[Point]

    def as_json(self) -> dict[str, Any]:
        """Numbers and text for a file; of the null only its maxima."""
        maximum, (i, j) = self.compared.maximum, self.compared.best
        return {
            "measure": self.measure,
            "models": self.models,
            "samples": self.samples,
            "layers": self.layers,
            "scores": self.compared.scores.tolist(),
            "p_of_pairs": self.compared.pairs.tolist(),
            "best_layers": [self.layers[0][i], self.layers[1][j]],
            "maximum": maximum._asdict(),
            "interval": self.interval,
            "chance_of_best_pair": self.chance,
            "null_maxima": self.compared.null.max(axis=(1, 2)).tolist(),
            "curve": [dataclasses.asdict(point) for point in self.curve],
        }


def compare(
    first: Representation,
    second: Representation,
    measure: Measure,
    *,
    best: float = 1.0,
    permutations: int = 500,
    resamples: int = 100,
    sizes: Sequence[int] = (),
    seed: int = 0,
) -> Result:
    """All layers of two models, against permutations of the second one's samples.

    Args:
      first, second: the same samples in the same order.
      measure: from `alignment.measure`.
      best: the highest possible score.
      permutations: their number.
      resamples: of the bootstrap interval; 0: no interval.
      sizes: numbers of samples at which the score is taken too.
      seed: of permutations and resamples.
    Raises:
      InputError: see `alignment.compare_layers`; another number of samples.
    """
    n = same_samples(first, second)
    a, b = first.layers, second.layers
    compared = alignment.compare_layers(measure, a, b, permutations=permutations, seed=seed, best=best)
    i, j = compared.best
    chance = measure.by_chance(a[i], b[j])
    return Result(
        measure=measure.name,
        models=(first.name, second.name),
        layers=(first.names, second.names),
        samples=n,
        compared=compared,
        interval=alignment.interval(measure, a, b, resamples=resamples, seed=seed) if resamples else None,
        chance=None if chance is None else float(chance),
        curve=[_point(a, b, measure, size, best, min(permutations, FEW), seed) for size in sizes],
    )


def curve_sizes(n: int, least: int) -> list[int]:
    """Numbers of samples from n down by halves, at most five and none below `least`."""
    return sorted(n >> i for i in range(5) if n >> i >= least)


def _point(a, b, measure, size, best, permutations, seed):
    """At most four disjoint parts of the samples, each evenly spread; the null is that of the first."""
    n, parts = len(a[0]), max(1, min(4, len(a[0]) // size))
    order = np.random.default_rng(seed).permutation(n)
    scores = []
    for part in range(parts):
        chosen = np.sort(order[part * size : (part + 1) * size])
        layers = [[layer[chosen] for layer in layers] for layers in (a, b)]
        if part:
            scores.append(float(alignment.score_table(measure, *layers).max()))
        else:
            found = alignment.compare_layers(
                measure, *layers, permutations=permutations, seed=seed, best=best
            ).maximum
            scores.append(found.score)
    return Point(size, float(np.mean(scores)), found.null_mean, found.threshold, parts)


def same_samples(first: Representation, second: Representation) -> int:
    """The number of samples of two models.

    Raises:
      InputError: other numbers, or other labels.
    """
    sizes = len(first.layers[0]), len(second.layers[0])
    if sizes[0] != sizes[1]:
        raise InputError(
            f"--models: {first.name} has {sizes[0]} samples and {second.name} {sizes[1]}; "
            "accepted: the same samples in the same order"
        )
    if first.labels is not None and second.labels is not None and (first.labels != second.labels).any():
        raise InputError(
            f"--models: the labels of {first.name} and {second.name} differ; "
            "accepted: the same samples in the same order"
        )
    return sizes[0]
