"""What each atom of a layer's dictionary stands for: the images and the classes that it answers to most."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import InputError
from crate_jax.models.stack import Intermediates


def peak_reader(class_token: bool) -> Callable[[Intermediates], dict[str, jax.Array]]:
    """A function for `trace=` that gives the strongest answer of each atom of a layer over the tokens of an example:
    `peak` `[b, m]` and `place` `[b, m]`, the number of that token among those that count.

    Args:
      class_token: the first token does not count.
    """

    def read(intermediates: Intermediates) -> dict[str, jax.Array]:
        codes = intermediates["ista_out"].astype(jnp.float32)[:, int(class_token) :]
        return {"peak": codes.max(axis=1), "place": codes.argmax(axis=1)}

    return read


class Atoms(NamedTuple):
    """The examples and classes of each of m atoms.

    Attributes:
      images: `[m, top]`, numbers of the examples whose strongest token answers most, the strongest first.
      peaks, places: `[m, top]`, that answer and its token.
      active: `[m]`, share of the examples in which the atom answers at all.
      class_means: `[m, classes]`, mean of the examples' strongest answers by class.
      selectivity: `[m]`, (largest class mean − mean of the others) / (their sum), from 0 (all classes alike) to 1 (one class
        alone), 0 for an atom that never answers.
    """

    images: np.ndarray
    peaks: np.ndarray
    places: np.ndarray
    active: np.ndarray
    class_means: np.ndarray
    selectivity: np.ndarray


def top_examples(
    batches: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], *, num_classes: int, top: int = 8
) -> Atoms:
    """Streams over examples; memory does not grow with their number.

    Args:
      batches: (`peak` `[b, m]`, `place` `[b, m]`, labels `[b]`) of examples in order, the first two as `peak_reader` gives
        them for a layer.
      num_classes: labels are below it.
      top: images kept per atom.
    Raises:
      InputError: no examples at all.
    """
    best = None
    done = 0
    for peak, place, labels in batches:
        peak, place = np.asarray(peak, np.float64), np.asarray(place)
        number = np.broadcast_to(done + np.arange(len(peak))[:, None], peak.shape)
        if best is None:
            m = peak.shape[1]
            best = [np.empty((0, m)), np.empty((0, m), int), np.empty((0, m), int)]
            sums, counts, active = np.zeros((num_classes, m)), np.zeros(num_classes), np.zeros(m)
        joined = [np.concatenate(pair) for pair in zip(best, (peak, place, number), strict=True)]
        order = np.argsort(-joined[0], axis=0, kind="stable")[:top]
        best = [np.take_along_axis(each, order, axis=0) for each in joined]
        np.add.at(sums, labels, peak)
        np.add.at(counts, labels, 1)
        active += (peak > 0).sum(axis=0)
        done += len(peak)
    if best is None or not done:
        raise InputError("atoms: found no examples; accepted: one or more")
    means = (sums / np.maximum(counts, 1)[:, None]).T
    return Atoms(best[2].T, best[0].T, best[1].T, active / done, means, _selectivity(means[:, counts > 0]))


def _selectivity(means: np.ndarray) -> np.ndarray:
    """(largest − mean of the others) / (largest + mean of the others)."""
    if means.shape[1] < 2:
        return np.zeros(len(means))
    largest = means.max(axis=1)
    others = (means.sum(axis=1) - largest) / (means.shape[1] - 1)
    return (largest - others) / np.maximum(np.abs(largest) + np.abs(others), np.finfo(float).tiny)
