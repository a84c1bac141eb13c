"""What two models share in particular: a layer of one in the place of the other's, and units that fire alike."""

import dataclasses

import numpy as np

from crate_jax import InputError, alignment
from crate_jax.analysis.alignment import FEW, same_samples
from crate_jax.analysis.representations import Representation


@dataclasses.dataclass(frozen=True)
class Stitched:
    """What is left of accuracy when one model's layers are put in the place of another's.

    Attributes:
      accuracy: `[L_a, L_b]`, of a linear classifier on b's layer, given a linear map of a's layer in its place.
      own: `[L_b]`, of the same classifier on b's layer itself.
      shuffled: `[L_a, L_b]`, with a map that was fitted to samples in the wrong order.
    """

    accuracy: np.ndarray
    own: np.ndarray
    shuffled: np.ndarray


def stitch(first: Representation, second: Representation, *, seed: int = 0) -> Stitched:
    """Fit a linear map from each layer of a to each layer of b, and read b's classes off what it gives.

    Features are those of whole samples (averaged over positions), not the stream of tokens: what is kept is what a linear
    classifier of b's layer can use. Samples at even places fit the maps and the classifiers (least squares with a ridge),
    those at odd places test them.

    Raises:
      InputError: samples without labels, or with one class.
    """
    n = same_samples(first, second)
    labels = labels_of(second)
    fit, test = np.arange(0, n, 2), np.arange(1, n, 2)
    targets = np.eye(int(labels.max()) + 1, dtype=np.float32)[labels]
    wrong = np.random.default_rng(seed).permutation(fit)

    def hits(scores):
        return float(np.mean(scores.argmax(1) == labels[test]))

    own, accuracy, shuffled = [], [], []
    for layer in second.layers:
        classifier = _least_squares(layer[fit], targets[fit])
        own.append(hits(classifier(layer[test])))
        for other in first.layers:
            for place, rows in ((accuracy, fit), (shuffled, wrong)):
                place.append(hits(classifier(_least_squares(other[fit], layer[rows])(other[test]))))
    shape = len(second.layers), len(first.layers)
    return Stitched(np.reshape(accuracy, shape).T, np.array(own), np.reshape(shuffled, shape).T)


def labels_of(model: Representation) -> np.ndarray:
    """The labels of a model's samples.

    Raises:
      InputError: none, or all the same.
    """
    if model.labels is None or len(np.unique(model.labels)) < 2:
        raise InputError(
            f"--stitch: the samples of {model.name} have no labels, or one; "
            "accepted: runs of labelled images, or labels in the file"
        )
    return model.labels


def _least_squares(x, y, ridge=1e-3):
    """The affine map of least squares; the ridge is a share of the features' mean variance."""
    mean, target = x.mean(0), y.mean(0)
    centred = (x - mean).astype(np.float64)
    gram = centred.T @ centred
    gram[np.diag_indices_from(gram)] += ridge * np.trace(gram) / len(gram) + np.finfo(np.float64).tiny
    weights = np.linalg.solve(gram, centred.T @ (y - target))
    return lambda z: (z - mean) @ weights + target


@dataclasses.dataclass(frozen=True)
class Units:
    """Units of two models that fire alike.

    Attributes:
      matches: (layer of a, unit, layer of b, unit, correlation), strongest first; each is the other's best match.
      threshold: 95 % of permutations give no correlation above it, in any pair of units.
      above: how many matches are above it.
    """

    matches: list[tuple[str, int, str, int, float]]
    threshold: float
    above: int


def rosetta(
    first: Representation, second: Representation, *, permutations: int = FEW, seed: int = 0
) -> Units:
    """Units (single features) of two models whose values over samples correlate most, each the other's best match.

    After Dravid et al., Rosetta Neurons (arXiv 2306.09346), on features of whole samples. The threshold is for the maximum
    over all pairs of units, from permutations of the second model's samples.
    """
    n = same_samples(first, second)
    found = alignment.unit_matches(
        np.concatenate(first.layers, axis=1),
        np.concatenate(second.layers, axis=1),
        orders=alignment.permutations(n, permutations, seed),
    )
    places = [
        [
            (name, unit)
            for name, layer in zip(model.names, model.layers, strict=True)
            for unit in range(layer.shape[1])
        ]
        for model in (first, second)
    ]
    rank = np.argsort(-found.correlation)
    matches = [
        (*places[0][found.first[i]], *places[1][found.second[i]], float(found.correlation[i])) for i in rank
    ]
    threshold = float(np.quantile(found.null, 0.95, method="higher"))
    return Units(matches, threshold, int(np.sum(found.correlation > threshold)))
