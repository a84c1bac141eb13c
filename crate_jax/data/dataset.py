"""What every kind of dataset has in common."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from crate_jax import InputError

SPLITS = ("train", "test")
_SAMPLE = 64  # images looked at to find the natural size of a dataset that does not state it


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a dataset holds, before any conversion.

    Attributes:
        name: the name it was asked for by.
        image_size: the images' height and width; the median short side where they are not square or vary.
        channels: 1 (grey) or 3 (RGB).
        num_classes: number of classes.
        class_names: their names; the label is the place in this tuple.
        max_value: the pixel value that means white.
        num_examples: number of examples in "train" and in "test".
    """

    name: str
    image_size: int
    channels: int
    num_classes: int
    class_names: tuple[str, ...]
    max_value: int
    num_examples: dict[str, int]


class Source(Protocol):
    """Examples by index; may be read by many threads at once and sent to other processes (pickled)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": uint8 [s, s, c], "label": np.int32}; InputError if the image is unreadable."""
        ...


class Dataset(Protocol):
    """A dataset that has been found and checked; one class for each kind of name."""

    def info(self, name: str) -> DatasetInfo:
        """Says what it holds; ``name`` is what the user called it."""
        ...

    def load(self, split: str, size: int, channels: int) -> Source:
        """The examples of "train" or "test" as [size, size, channels] images."""
        ...


def held_out_fifth(labels: np.ndarray, where: str) -> dict[str, np.ndarray]:
    """Indices of the "train" and "test" examples: a stratified fifth is held out by a fixed permutation.

    Each class is put in random order and spread evenly over [0, 1]; the test examples are the first fifth of
    all, so each class gives its share to within one example.
    """
    # Bit generators give the same stream in every version of numpy, which Generator's methods do not promise.
    order = np.lexsort((np.random.Philox(key=0).random_raw(len(labels)), labels))
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    place = (rank + 0.5) / np.repeat(counts, counts)
    num_test = -(-len(labels) // 5)
    order = order[np.argsort(place, kind="stable")]
    split = {"train": np.sort(order[num_test:]), "test": np.sort(order[:num_test])}
    if len(np.unique(labels[split["train"]])) < len(counts):
        raise InputError(
            f"{where}: {len(labels)} images in {len(counts)} classes are too few to hold out a fifth"
        )
    return split


def natural_shape(count: int, image: Callable[[int], np.ndarray]) -> tuple[int, int]:
    """The median short side of some images, and 1 channel if all of them are grey."""
    shapes = [image(i).shape for i in np.linspace(0, count - 1, min(count, _SAMPLE), dtype=int)]
    return int(np.median([min(h, w) for h, w, _ in shapes])), max(c for _, _, c in shapes)
