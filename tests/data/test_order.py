"""Which examples are seen, and in which order: fixed numbers, so that no new version of a library changes them unnoticed.

A checkpoint holds the step alone. Under another order a resumed run would see some examples twice and others never.
"""

import hashlib

import numpy as np
import pytest

from crate_jax.data import train
from crate_jax.data.addition import Permutation
from crate_jax.data.dataset import held_out_fifth
from crate_jax.data.subset import per_class


class Numbered:
    """Example i has label i modulo 10."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        return {
            "image": np.zeros((1, 1, 1), np.uint8),
            "label": np.int32(index % 10),
            "index": np.int64(index),
        }


def digest(indices) -> str:
    return hashlib.sha256(np.asarray(indices, "<i8").tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("count", "batch_size", "seed", "first", "expected"),
    [
        (1437, 64, 0, [1009, 815, 1316, 246, 1311], "79b94e3205c03c08"),  # the digits
        (50_000, 128, 0, [25847, 48559, 30930, 16282, 37696], "02e2aa6b0da2d447"),
        (50_000, 128, 1, [45286, 15450, 11914, 26102, 30181], "b172312c578e2265"),
        (1_281_167, 1024, 0, [240984, 1142230, 320361, 945980, 229532], "506f3d0c9425c3c0"),  # ImageNet
    ],
)
def test_the_order_of_training(count, batch_size, seed, first, expected):
    """Of three batches at the start, three across the first two epochs' border, and three far on."""
    batches = train(Numbered(count), batch_size=batch_size, seed=seed)
    border = count // batch_size
    steps = [0, 1, 2, border - 1, border, border + 1, *range(10 * border, 10 * border + 3)]
    order = np.concatenate([batches.batch(step)["index"] for step in steps])
    assert (order[:5].tolist(), digest(order)) == (first, expected)


def test_the_split_of_a_folder():
    split = held_out_fifth(np.arange(1000) % 7, "here")
    assert [digest(split[use]) for use in ("train", "test")] == ["d253de966db8c91c", "1bf3a8e58b36a19c"]


def test_the_few_labels_of_each_class():
    source = per_class(Numbered(500), 4, num_classes=10, seed=0)
    assert digest([source[i]["index"] for i in range(len(source))]) == "9b6ad69cb405bd0b"


def test_the_order_of_sums():
    permutation = Permutation(810_000)
    assert digest([permutation(place) for place in range(1000)]) == "b41a031fb228cbdd"
