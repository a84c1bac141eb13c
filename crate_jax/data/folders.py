"""Class folders of image files."""

import collections
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from crate_jax import InputError
from crate_jax.data import transforms
from crate_jax.data.dataset import (
    SPLITS,
    TEST_SPLITS,
    LabelledImages,
    Source,
    class_name,
    digest_of_files,
    held_out_fifth,
    natural,
)

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
        self._root, left_out = path, _LeftOut()
        try:
            if _directories(path / "train", excluded):
                train = _class_folders(path / "train", excluded, left_out)
                test = _class_folders(self._test_directory(path, excluded), excluded, left_out)
                self.classes = tuple(sorted(train, key=natural))
                if unknown := sorted(test.keys() - train.keys(), key=natural):
                    raise InputError(
                        f"folder {path}: classes in the test split but not in train: {', '.join(unknown[:5])}"
                    )
                self._splits = {"train": self._labelled(train), "test": self._labelled(test)}
            else:
                images = _class_folders(path, excluded, left_out)
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
        self.notes = left_out.notes(path)

    @staticmethod
    def _test_directory(path: Path, excluded: str | None) -> Path:
        for name in TEST_SPLITS:
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

    def fingerprint(self) -> str:
        return digest_of_files(self._root, (path for split in SPLITS for path in self._splits[split][0]))


class _LeftOut:
    """What stands beside the images of class folders."""

    def __init__(self):
        self._empty: list[str] = []
        self._folders: list[str] = []
        self._files: collections.Counter[str] = collections.Counter()

    def add(self, folder: str, images: list[str], others: list[str], folders: list[str]) -> None:
        """A class folder: paths of its images, names of its other files, paths of the folders in it."""
        self._folders += folders
        self._files.update(os.path.splitext(name)[1].lower() or name for name in others)
        if not images:
            self._empty.append(folder)

    def notes(self, path: Path) -> tuple[str, ...]:
        """Sentences about it."""
        found = []
        if self._empty:
            names = ", ".join(f"{os.path.relpath(folder, path)}/" for folder in sorted(self._empty)[:5])
            found.append(
                f"folder {path}: class folders without images are left out ({len(self._empty)}): {names}"
            )
        if self._folders:
            names = ", ".join(f"{os.path.relpath(folder, path)}/" for folder in sorted(self._folders)[:5])
            found.append(
                f"folder {path}: folders inside class folders are left out ({len(self._folders):,}): {names}"
            )
        if self._files:
            kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in self._files.most_common(5))
            found.append(
                f"folder {path}: files that are no images are left out ({self._files.total():,}): {kinds}"
            )
        return tuple(found)


def _directories(path: Path, excluded: str | None) -> list[os.DirEntry]:
    """The folders in a folder but for hidden ones and the excluded one; none if there is no such folder."""
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        seen = [entry for entry in entries if not entry.name.startswith(".")]
    found = [entry for entry in seen if entry.is_dir()]
    if broken := [each.path for each in seen if each.is_symlink() and not os.path.exists(each.path)]:
        raise InputError(f"folder {path}: {min(broken)} is a link to what is not there; remove or mend it")
    return [entry for entry in found if os.path.realpath(entry.path) != excluded]


def _class_folders(path: Path, excluded: str | None, left_out: _LeftOut) -> dict[str, list[str]]:
    """The sorted image files of every folder in ``path`` that holds some, by the name of the class.

    Raises:
        InputError: links to images that are not there, or two folders of one class.
    """
    images, broken = {}, []
    for directory in _directories(path, excluded):
        files, others, folders = [], [], []
        with os.scandir(directory.path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                image = entry.name.lower().endswith(IMAGE_SUFFIXES)
                if entry.is_file():
                    (files if image else others).append(entry.path if image else entry.name)
                elif entry.is_dir():
                    folders.append(entry.path)
                elif image and entry.is_symlink():
                    broken.append(entry.path)
                else:
                    others.append(entry.name)
        left_out.add(directory.path, files, others, folders)
        if files:
            name = class_name(directory.name)
            if name in images:
                raise InputError(
                    f"folder {path}: two folders are called {name}, in different encodings; accepted: one"
                )
            images[name] = sorted(files)
    if broken:
        raise InputError(
            f"folder {path}: {len(broken):,} image files are links to what is not there, such as {min(broken)}; accepted: "
            "links to files that can be read"
        )
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
    files = sorted(file for file in path.rglob("*") if _is_image(file.relative_to(path)))
    if broken := [file for file in files if file.is_symlink() and not file.exists()]:
        raise InputError(
            f"folder {path}: {len(broken):,} image files are links to what is not there, such as {broken[0]}; accepted: "
            "links to files that can be read"
        )
    files = [file for file in files if file.is_file()]
    if not files:
        raise InputError(f"folder {path} holds no images; accepted: {', '.join(IMAGE_SUFFIXES)}")
    return files


def _is_image(file: Path) -> bool:
    """By its name; not what systems put beside images, whose names begin with a dot."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in file.parts)
