"""ReaL labels of ImageNet's validation images (Beyer et al. 2020): all classes that an image shows, none for a few.

The file is ``real.json`` of google-research/reassessed-imagenet: for image 1, 2, … of the validation set the list
of its classes, numbered in the order of their WordNet ids.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from crate_jax import InputError
from crate_jax.data import transforms
from crate_jax.data.dataset import Source


def load(path: Path) -> np.ndarray:
    """The classes of each image, int32 [images, most classes of one], filled up with −1.

    Raises:
        InputError: no such file, or not a list of lists of numbers.
    """
    accepted = "accepted: real.json, a list with a list of class numbers for each image"
    try:
        lists = json.loads(Path(path).read_text(encoding="utf-8"))
        labels = np.full((len(lists), max(1, max(len(classes) for classes in lists))), -1, np.int32)
        for row, classes in zip(labels, lists, strict=True):
            row[: len(classes)] = classes
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"--real_labels: {path} cannot be read ({error}); {accepted}") from None
    return labels


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A source of validation images with "real" beside "label": a row of `load`'s, by the number in its name."""

    source: Source
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.source[index]
        where = example["image"].where if isinstance(example["image"], transforms.Encoded) else "an array"
        number = re.search(r"ILSVRC2012_val_(\d{8})", where)
        if number is None or not 1 <= int(number[1]) <= len(self.labels):
            raise InputError(
                f"--real_labels: {where} is none of the {len(self.labels)} images; accepted: names with "
                "ILSVRC2012_val_00000001, …"
            )
        return {**example, "real": self.labels[int(number[1]) - 1]}
