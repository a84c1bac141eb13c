"""Images in memory: scikit-learn's digits and .npz files."""

import contextlib
import dataclasses
import textwrap
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from crate_jax import InputError
from crate_jax.data.dataset import SPLITS, LabelledImages, Source, digest, held_out_fifth


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """A source over images in memory: uint8 [n, h, w, c] and int32 labels [n]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index]}


class Digits(LabelledImages):
    """scikit-learn's digits, see `sources`."""

    classes = tuple("0123456789")
    white = 16

    def __init__(self):
        from sklearn.datasets import load_digits  # takes a second to import; only this dataset needs it

        digits = load_digits()
        self._images = digits.images.astype(np.uint8)[..., None]
        self._labels = digits.target.astype(np.int32)
        self._chosen = held_out_fifth(self._labels, "digits")
        self.splits = {split: len(chosen) for split, chosen in self._chosen.items()}

    def natural_shape(self) -> tuple[int, int]:
        return 8, 1

    def load(self, split: str) -> Source:
        chosen = self._chosen[split]
        return ArraySource(self._images[chosen], self._labels[chosen])


class Npz(LabelledImages):
    """Arrays in a .npz file, see `sources`."""

    def __init__(self, path: Path):
        self._path = path
        if not path.is_file():
            raise InputError(f"file {path} does not exist; accepted: npz:PATH of an .npz file")
        with self._archive() as archive:
            if {"x_train", "y_train", "x_test", "y_test"} <= set(archive.files):
                names = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
            elif {"images", "labels"} <= set(archive.files):
                names = {"train": ("images", "labels")}
            else:
                accepted = "accepted: x_train, y_train, x_test, y_test, or images, labels"
                raise InputError(f"{path} holds the arrays {', '.join(archive.files) or 'none'}; {accepted}")
            # The archive holds a checksum of each array.
            self._sums = [f"{one.filename} {one.file_size} {one.CRC}" for one in archive.zip.infolist()]
            self._shapes = {split: self._image_shape(archive, images) for split, (images, _) in names.items()}
            labels = {split: self._labels(archive, *pair) for split, pair in names.items()}
            class_names = archive["classes"] if "classes" in archive.files else None
        if len({shape[1:] for shape in self._shapes.values()}) > 1:
            raise InputError(f"{path}: x_train and x_test hold images of different shapes")
        if class_names is None:
            values, train = np.unique(labels["train"], return_inverse=True)
            self.classes = tuple(str(value) for value in values)
        else:
            self.classes = self._class_names(class_names, labels["train"])
            values, train = np.arange(len(self.classes)), labels["train"]
        if len(values) < 2:
            raise InputError(f"{path} holds labels of one class, {values[0]}; accepted: two or more")
        if "test" in labels:
            if unknown := np.setdiff1d(labels["test"], values).tolist():
                raise InputError(f"{path}: labels in y_test but not in y_train: {unknown[:5]}")
            chosen = {split: slice(None) for split in SPLITS}
            numbers = {"train": train, "test": np.searchsorted(values, labels["test"])}
        else:
            chosen = held_out_fifth(train, str(path))
            numbers = {split: train[chosen[split]] for split in SPLITS}
            names["test"] = names["train"]
        self._images = {split: (names[split][0], chosen[split]) for split in SPLITS}
        self._numbers = {split: numbers[split].astype(np.int32) for split in SPLITS}
        self.splits = {split: len(self._numbers[split]) for split in SPLITS}

    @contextlib.contextmanager
    def _archive(self) -> Iterator[np.lib.npyio.NpzFile]:
        """Opens the file and turns whatever numpy says of a damaged one into an InputError."""
        try:
            archive = np.load(self._path, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array without a name")
            with archive:
                yield archive
        except InputError:
            raise
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            reason = textwrap.shorten(str(error), 200)
            raise InputError(
                f"{self._path} cannot be read as .npz without pickled objects ({reason})"
            ) from error

    def _image_shape(self, archive: np.lib.npyio.NpzFile, name: str) -> tuple[int, ...]:
        """Reads shape and type alone: the images themselves may be large."""
        with archive.zip.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(file)
        if dtype != np.uint8 or len(shape) not in (3, 4) or (*shape, 1)[3] not in (1, 3) or 0 in shape:
            accepted = "accepted: uint8 (0 to 255) [n, h, w] or [n, h, w, 1 or 3]"
            raise InputError(f"{self._path}: {name} is {dtype} {list(shape)}; {accepted}")
        return shape

    def _labels(self, archive: np.lib.npyio.NpzFile, images: str, name: str) -> np.ndarray:
        labels, count = archive[name], self._image_shape(archive, images)[0]
        if labels.dtype.kind not in "iuU" or labels.shape not in ((count,), (count, 1)):
            accepted = f"accepted: integers or strings [{count}]"
            raise InputError(f"{self._path}: {name} is {labels.dtype} {list(labels.shape)}; {accepted}")
        return labels.reshape(count)

    def _class_names(self, names: np.ndarray, labels: np.ndarray) -> tuple[str, ...]:
        """The array `classes`, whose places are the labels."""
        classes = tuple(str(name) for name in names.ravel())
        places = labels.dtype.kind in "iu" and 0 <= labels.min(initial=0) <= labels.max(initial=0) < len(
            classes
        )
        if names.dtype.kind != "U" or names.ndim != 1 or len(set(classes)) < len(classes) or not places:
            raise InputError(
                f"{self._path}: classes is {names.dtype} {list(names.shape)} for labels of {labels.dtype}; accepted: "
                "different names, whose places are the labels"
            )
        return classes

    def fingerprint(self) -> str:
        return digest(self._sums)

    def natural_shape(self) -> tuple[int, int]:
        _, height, width, channels = (*self._shapes["train"], 1)[:4]
        return min(height, width), channels

    def load(self, split: str) -> Source:
        name, chosen = self._images[split]
        with self._archive() as archive:
            images = archive[name][chosen]
        images = images if images.ndim == 4 else images[..., None]
        return ArraySource(images, self._numbers[split])
