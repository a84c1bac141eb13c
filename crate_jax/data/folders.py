"""Class folders of image files."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from crate_jax import InputError
from crate_jax.data import transforms
from crate_jax.data.dataset import SPLITS, LabelledImages, Source, held_out_fifth, natural

_LAYOUT = "accepted: train/CLASS/* with test/CLASS/* (or val/CLASS/*), or CLASS/* alone"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


class Folder(LabelledImages):
    """Image files in class folders, see `sources`."""

    def __init__(self, path: Path, exclude: str | None):
        excluded = os.path.realpath(exclude) if exclude else None
        if not path.is_dir():
            raise InputError(f"folder {path} does not exist; {_LAYOUT}")
        if excluded == os.path.realpath(path):
            raise InputError(
                f"folder {path} is the run's own directory too; accepted: one elsewhere or inside it"
            )
        try:
            if _directories(path / "train", excluded):
                train = _class_folders(path / "train", excluded)
                test = _class_folders(self._test_directory(path, excluded), excluded)
                self.classes = tuple(sorted(train, key=natural))
                if unknown := sorted(test.keys() - train.keys(), key=natural):
                    raise InputError(
                        f"folder {path}: classes in the test split but not in train: {', '.join(unknown[:5])}"
                    )
                self._splits = {"train": self._labelled(train), "test": self._labelled(test)}
            else:
                images = _class_folders(path, excluded)
                self.classes = tuple(sorted(images, key=natural))
                self._splits = {"train": self._labelled(images)}
        except OSError as error:
            raise InputError(f"folder {error.filename} cannot be read ({error.strerror})") from error
        if len(self.classes) < 2:
            found = (
                f"images of one class, {self.classes[0]}/" if self.classes else "no images in class folders"
            )
            raise InputError(f"folder {path} holds {found}; {_LAYOUT}, of two classes or more")
        if "test" not in self._splits:
            paths, labels = self._splits["train"]
            for split, chosen in held_out_fifth(labels, f"folder {path}").items():
                self._splits[split] = [paths[i] for i in chosen], labels[chosen]
        elif not self._splits["test"][0]:
            raise InputError(f"folder {path} holds no test images; {_LAYOUT}")
        self.splits = {split: len(self._splits[split][0]) for split in SPLITS}

    @staticmethod
    def _test_directory(path: Path, excluded: str | None) -> Path:
        for name in ("test", "val"):
            if _directories(path / name, excluded):  # a test/ without class folders has no labels
                return path / name
        accepted = f"accepted: one of them, or folder:{path}/train to hold out a fifth"
        raise InputError(f"folder {path} has train/ but neither test/CLASS/ nor val/CLASS/; {accepted}")

    def _labelled(self, images: dict[str, list[str]]) -> tuple[list[str], np.ndarray]:
        paths = [path for name in self.classes for path in images.get(name, ())]
        counts = [len(images.get(name, ())) for name in self.classes]
        return paths, np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    def load(self, split: str) -> Source:
        return _Files(*self._splits[split])


def _directories(path: Path, excluded: str | None) -> list[os.DirEntry]:
    """The folders in a folder but for hidden ones and the excluded one; none if there is no such folder."""
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    return [entry for entry in found if os.path.realpath(entry.path) != excluded]


def _class_folders(path: Path, excluded: str | None) -> dict[str, list[str]]:
    """The sorted image files of every folder in ``path`` that holds some."""
    images = {}
    for directory in _directories(path, excluded):
        with os.scandir(directory.path) as entries:
            files = [
                entry.path
                for entry in entries
                if entry.name.lower().endswith(IMAGE_SUFFIXES)
                and not entry.name.startswith(".")
                and entry.is_file()
            ]
        if files:
            images[directory.name] = sorted(files)
    return images


@dataclasses.dataclass(frozen=True)
class _Files:
    """A source over image files."""

    paths: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": _read(self.paths[index]), "label": self.labels[index]}


def _read(path: str) -> transforms.Encoded:
    try:
        with open(path, "rb", buffering=0) as file:
            return transforms.Encoded(file.read(), path)
    except OSError as error:
        raise InputError(f"{path}: unreadable image ({error.strerror})") from error


def unlabelled(path: Path) -> Source:
    """The images of a folder and of the folders in it, in the order of their names, with the label −1.

    Raises:
        InputError: no such folder, or no image in it.
    """
    files = _image_files(path)
    return _Files([str(file) for file in files], np.full(len(files), -1, np.int32))


def read_images(path: Path, *, limit: int, size: int, channels: int) -> np.ndarray:
    """An image file, or the first images of a folder and the folders in it, as uint8 [n, size, size, channels].

    Raises:
        InputError: nothing there, no image in the folder, or an unreadable one.
    """
    files = _image_files(path)[:limit]
    return np.stack([transforms.fit(_read(str(file)), size=size, channels=channels) for file in files])


def _image_files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"no file or folder {path}; accepted: an image, or a folder of images")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"folder {path} holds no images; accepted: {', '.join(IMAGE_SUFFIXES)}")
    return files
