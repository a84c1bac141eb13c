"""Parts of a source."""

import numpy as np
import pytest

from crate_jax import InputError
from crate_jax.data import sources, subset


def digits():
    return sources.load("digits", "train", image_size=8, channels=1)


def test_every_class_gives_its_share():
    chosen = subset.per_class(digits(), 4, num_classes=10, seed=0)
    assert len(chosen) == 40
    labels = [int(chosen[i]["label"]) for i in range(40)]
    np.testing.assert_array_equal(np.bincount(labels), np.full(10, 4))


def test_the_seed_decides_which():
    def images(seed):
        chosen = subset.per_class(digits(), 2, num_classes=10, seed=seed)
        return np.stack([chosen[i]["image"] for i in range(len(chosen))])

    np.testing.assert_array_equal(images(0), images(0))
    assert (images(0) != images(1)).any()


@pytest.mark.parametrize(("count", "message"), [(0, "accepted: 1 or more"), (1000, "accepted: at most 1")])
def test_impossible_numbers_are_refused(count, message):
    with pytest.raises(InputError, match=rf"data.labels_per_class: found {count}; {message}"):
        subset.per_class(digits(), count, num_classes=10, seed=0)


def test_a_sample_is_spread_over_all_classes():
    """A folder lies in the order of its classes."""
    source = [{"label": label} for label in np.repeat(np.arange(10), 100)]
    chosen = subset.spread(source, 50)
    labels = [int(chosen[i]["label"]) for i in range(len(chosen))]
    np.testing.assert_array_equal(np.bincount(labels), np.full(10, 5))
    assert len(subset.spread(source[:7], 50)) == 7
