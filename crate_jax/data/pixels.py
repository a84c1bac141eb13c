"""Images as the values of their channels, row by row, red, green and blue of each pixel in turn.

All rows of all images stand one below the other. An example is some whole rows, so the place of a value in it says its
column and its channel. Training examples may begin at any row; test examples follow one another, so that each value is
predicted once and the mean loss is bits per dimension.
"""

import copy
import dataclasses
from typing import Any

import numpy as np

from crate_jax import InputError
from crate_jax.data import transforms
from crate_jax.data.dataset import SPLITS, TEST_SPLITS, Dataset, DatasetInfo, Source, Tokens, notes_of

CHANNELS = Tokens(256, "channel", "pixels")


class Pixels:
    """The images of another dataset, its classes left aside. Images of several sizes are fitted to the size it reports.

    Args:
        images: the dataset.
        name: what it is called.
    Raises:
        InputError: a dataset of something else.
    """

    _rows: int | None = None  # Of an example; see `cut`.

    def __init__(self, images: Dataset, name: str):
        info = images.info(name)
        if info.tokens is not None:
            raise InputError(
                f"data.name: {name} is {info.kind}; accepted: pixels:NAME of a dataset of images"
            )
        test = next(split for split in TEST_SPLITS if split in images.splits)
        self._images, self._names = images, {"train": "train", "test": test}
        self._counts = {split: images.splits[own] for split, own in self._names.items()}
        self._size, self._channels, self._white = info.image_size, info.channels, info.max_value
        self._fingerprint, self.notes = info.fingerprint, notes_of(images)

    @property
    def splits(self) -> dict[str, int]:
        """Examples of each split; single values while their length is open."""
        if self._rows is None:
            return {split: count * self._size * self._row for split, count in self._counts.items()}
        return {split: len(self.load(split)) for split in SPLITS}

    @property
    def _row(self) -> int:
        return self._size * self._channels

    def info(self, name: str) -> DatasetInfo:
        """What it holds; while the length of an example is open, `num_examples` counts values."""
        counts = {split: count * self._size * self._row for split, count in self._counts.items()}
        tokens = dataclasses.replace(CHANNELS, vocab_size=self._white + 1)
        info = DatasetInfo(name, num_examples=counts, tokens=tokens, fingerprint=self._fingerprint)
        return info if self._rows is None else info.cut(self._rows * self._row)

    def cut(self, length: int) -> "Pixels":
        """The same images in examples of so many values.

        Raises:
            InputError: a length that is no number of whole rows, or more than there are.
        """
        fewest = self._size * min(self._counts.values())
        if length % self._row or not 0 < length // self._row <= fewest:
            raise InputError(
                f"model.num_positions: found {length}; accepted: a multiple of {self._row}, a row of the images "
                f"({self._size} pixels of {self._channels}), up to {fewest * self._row}"
            )
        pixels = copy.copy(self)
        pixels._rows = length // self._row
        return pixels

    def load(self, split: str) -> Source:
        """The examples of a split."""
        rows, height = self._rows or 1, self._size
        stride = rows if split == "test" else 1
        count = (height * self._counts[split] - rows) // stride + 1
        return _Rows(self._images.load(self._names[split]), height, self._channels, rows, stride, count)


@dataclasses.dataclass(frozen=True)
class _Rows:
    images: Source
    height: int
    channels: int
    rows: int
    stride: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        first = index * self.stride
        image, skipped = divmod(first, self.height)
        past = -(-(first + self.rows) // self.height)
        rows = np.concatenate([self._image(number) for number in range(image, past)])
        return {"tokens": rows[skipped : skipped + self.rows].reshape(-1)}

    def _image(self, number: int) -> np.ndarray:
        return transforms.fit(self.images[number]["image"], size=self.height, channels=self.channels)
