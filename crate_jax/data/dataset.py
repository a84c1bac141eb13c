"""What every kind of dataset has in common."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from crate_jax import InputError

SPLITS = ("train", "test")
# The split that is tested on has several names; the first one with labels is taken.
TEST_SPLITS = ("test", "val", "validation")
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
        num_examples: number of examples in "train" and in "test", as they are used; of text, of bytes.
        kind: "images", or "text", which has neither size, channels nor classes.
    """

    name: str
    image_size: int
    channels: int
    num_classes: int
    class_names: tuple[str, ...]
    max_value: int
    num_examples: dict[str, int]
    kind: str = "images"


class Source(Protocol):
    """Examples by index; may be read by many threads at once and sent to other processes (pickled)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": uint8 [h, w, c] or `transforms.Encoded`, "label": np.int32}, or of text {"text": uint8 [n]}; InputError
        if it cannot be read.
        """
        ...


class Dataset(Protocol):
    """A dataset that has been found and checked; one class for each kind of name."""

    splits: Mapping[
        str, int
    ]  # Number of examples by the split's name; "train" and one of TEST_SPLITS are there.

    def info(self, name: str) -> DatasetInfo:
        """Says what it holds; ``name`` is what the user called it."""
        ...

    def load(self, split: str) -> Source:
        """The examples of a split as they are stored."""
        ...


@dataclasses.dataclass(frozen=True)
class Part:
    """Some examples of a source."""

    source: Source
    indices: np.ndarray | range

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[index])]


@dataclasses.dataclass(frozen=True)
class Joined:
    """Several sources, one after the other."""

    sources: tuple[Source, ...]

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for source in self.sources:
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)


def select(spec: str, splits: Mapping[str, int]) -> list[tuple[str, range]]:
    """What a split in the syntax of TFDS means: "train", "train[:90%]", "train[-1000:]", "train+validation".

    Bounds are numbers of examples or percentages (rounded to the nearest example), from the end where negative.

    Args:
        spec: the split.
        splits: the splits that there are and their sizes. "test" stands for "val" or "validation" where there is no
            "test", and each of these for the others.

    Returns:
        (split, examples) in the order in which they are asked for.

    Raises:
        InputError: a split that does not exist, or one without examples.
    """
    chosen = []
    for part in spec.split("+"):
        match = re.fullmatch(r"\s*(\w+)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*", part)
        names = [] if match is None else [match[1], *(TEST_SPLITS if match[1] in TEST_SPLITS else ())]
        name = next((name for name in names if name in splits), None)
        if name is None:
            accepted = (
                f"accepted: {', '.join(splits)}, a part of one such as train[:90%], or several joined by +"
            )
            raise InputError(f"split is {spec!r}; {accepted}")
        count = splits[name]
        start, stop = (_bound(text, count) for text in (match[2] or "0", match[3] or "100%"))
        if start >= stop:
            raise InputError(f"split {spec!r} holds no examples; {name} has {count}")
        chosen.append((name, range(start, stop)))
    return chosen


def _bound(text: str, count: int) -> int:
    place = round(int(text[:-1]) * count / 100) if text.endswith("%") else int(text)
    return min(count, max(0, place + count if text.startswith("-") else place))


def held_out_fifth(labels: np.ndarray, where: str) -> dict[str, np.ndarray]:
    """Indices of the "train" and "test" examples: a stratified fifth is held out by a fixed permutation.

    Each class is put in random order and spread evenly over [0, 1]; the test examples are the first fifth of
    all, so each class gives its share to within one example.

    Raises:
        InputError: too few images of a class to hold any out.
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


def natural(text: str) -> tuple[list[str | int], str]:
    """Sorting key under which class 10 follows class 9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)], text


def by_split(path: Path, suffix: str) -> dict[str, list[Path]]:
    """The files of a folder that end in ``suffix``, sorted, by the split that their names or their folders begin with.

    Raises:
        InputError: none for train, or none to test on.
    """
    found: dict[str, list[Path]] = {}
    for file in sorted(path.rglob(f"*{suffix}")):
        words = re.split(r"[^a-z0-9]+", str(file.relative_to(path)).lower())
        split = next((word for word in words if word in ("train", *TEST_SPLITS)), None)
        if split is not None:
            found.setdefault(split, []).append(file)
    if "train" not in found or not found.keys() & set(TEST_SPLITS):
        there = ", ".join(found) or "none"
        accepted = f"accepted: files such as train-0000{suffix} and val-0000{suffix}"
        raise InputError(f"folder {path} holds {suffix} files for the splits: {there}; {accepted}")
    return found
