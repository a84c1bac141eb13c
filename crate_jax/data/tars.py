"""Images in tar files, read where they lie: an index of places is made once, then any example is one read away."""

import dataclasses
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crate_jax import InputError
from crate_jax.data import transforms
from crate_jax.data.dataset import LabelledImages, Source, by_split, natural
from crate_jax.data.folders import IMAGE_SUFFIXES

_IMAGENET = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")


class _Member(NamedTuple):
    """A file in a tar file: its name there, and where its bytes are."""

    name: str
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class _Spans:
    """A source over parts of files."""

    paths: tuple[str, ...]  # The tar files.
    names: np.ndarray  # Of the members.
    places: np.ndarray  # int64 [n, 3]: which file, first byte, number of bytes.
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, start, size = (int(value) for value in self.places[index])
        path, name = self.paths[file], str(self.names[index])
        try:
            # Opened anew each time: a descriptor costs microseconds, and threads and processes share nothing.
            descriptor = os.open(path, os.O_RDONLY)
            try:
                data = os.pread(descriptor, size, start)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise InputError(f"{path}: {name} cannot be read ({error.strerror})") from error
        return {"image": transforms.Encoded(data, f"{path}/{name}"), "label": self.labels[index]}


class Tars(LabelledImages):
    """Images in tar files, see `sources`."""

    def __init__(self, path: Path):
        self._name = f"tar:{path}"
        if any((path / name).is_file() for name in _IMAGENET):
            self.classes, self._sources = _imagenet(path)
        else:
            self.classes, self._sources = _archives(path)
        self.splits = {split: len(source) for split, source in self._sources.items()}

    def load(self, split: str) -> Source:
        return self._sources[split]


def _members(path: Path, start: int = 0, size: int | None = None) -> Iterator[_Member]:
    """The files, but hidden ones, in an uncompressed tar file: a file or the part [start, start + size) of one."""
    try:
        with open(path, "rb") as file:
            end = os.fstat(file.fileno()).st_size if size is None else start + size
            file.seek(start)
            # Only offsets are wanted: tarfile keeps what it has seen, so its list is emptied on the way.
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()
                    if member.offset_data + member.size > end:
                        raise InputError(f"{path}: {member.name} is cut off; the file is not complete")
                    if member.isfile() and not member.name.rpartition("/")[2].startswith("."):
                        yield _Member(member.name, member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path} cannot be read as an uncompressed tar file ({error})") from error


def _spans(found: list[tuple[Path, _Member, int]]) -> _Spans:
    paths = list(dict.fromkeys(str(path) for path, _, _ in found))
    number = {path: i for i, path in enumerate(paths)}
    return _Spans(
        tuple(paths),
        np.array([member.name for _, member, _ in found]),
        np.array([(number[str(path)], member.start, member.size) for path, member, _ in found], np.int64),
        np.array([label for _, _, label in found], np.int32),
    )


def _archives(path: Path) -> tuple[tuple[str, ...], dict[str, _Spans]]:
    """WebDataset's form, where the files of an example share their name up to the first dot, or CLASS/NAME.jpg."""
    found = {
        split: [example for file in files for example in _examples(file)]
        for split, files in by_split(path, ".tar").items()
    }
    classes = {label for examples in found.values() for _, _, label in examples}
    if not all(found.values()) or len(classes) < 2:
        accepted = (
            "accepted: NAME.jpg with NAME.cls (or a label in NAME.json), or CLASS/NAME.jpg, of two classes"
        )
        raise InputError(f"tar:{path} holds {len(classes)} classes in {', '.join(found)}; {accepted}")
    names = tuple(sorted(classes, key=natural))
    if all(name.isdecimal() for name in names):  # Numbers count from 0, whether or not each of them occurs.
        names = tuple(str(i) for i in range(int(names[-1]) + 1))
    if (path / "classes.txt").is_file():
        given = tuple((path / "classes.txt").read_text(encoding="utf-8").splitlines())
        if not all(name.isdecimal() for name in names) or len(given) < len(names):
            raise InputError(f"tar:{path}: classes.txt has {len(given)} names, the labels are {len(names)}")
        labels, names = {str(i): i for i in range(len(given))}, given
    else:
        labels = {name: i for i, name in enumerate(names)}
    sources = {
        split: _spans([(file, member, labels[label]) for file, member, label in examples])
        for split, examples in found.items()
    }
    return names, sources


def _examples(file: Path) -> Iterator[tuple[Path, _Member, str]]:
    images, labels = [], {}
    for member in _members(file):
        folder, _, base = member.name.rpartition("/")
        key, _, suffix = base.partition(".")
        if member.name.lower().endswith(IMAGE_SUFFIXES):
            images.append((f"{folder}/{key}", member, folder.rpartition("/")[2]))
        elif suffix in ("cls", "cls.txt", "json"):
            label = _label(file, member)
            if suffix == "json":
                labels.setdefault(f"{folder}/{key}", label)
            else:
                labels[f"{folder}/{key}"] = label
    for key, member, folder in images:
        label = labels.get(key) or ("" if labels else folder)
        if not label:
            raise InputError(f"{file}: {member.name} has no label; accepted: {Path(key).name}.cls beside it")
        yield file, member, label


def _label(file: Path, member: _Member) -> str:
    """The class in a label's file, a number or a name; "" if it names none."""
    with open(file, "rb") as content:
        content.seek(member.start)
        data = content.read(member.size)
    try:
        label = data.decode()
        if member.name.endswith(".json"):
            label = json.loads(label).get("label")
    except (ValueError, AttributeError):  # not UTF-8, no JSON, no object
        label = False
    if isinstance(label, bool) or not isinstance(label, str | int | None):
        accepted = 'accepted: {"label": CLASS} in .json, CLASS in .cls, a number or a name in UTF-8'
        raise InputError(f"{file}: {member.name} is no label; {accepted}")
    return "" if label is None else str(label).strip()


def _imagenet(path: Path) -> tuple[tuple[str, ...], dict[str, _Spans]]:
    """ImageNet-1K's own archives: a tar file of 1,000 tar files, one of validation images, and the development kit."""
    train, val, devkit = (path / name for name in _IMAGENET)
    missing = [file.name for file in (train, val, devkit) if not file.is_file()]
    if missing:
        raise InputError(f"tar:{path} lacks {', '.join(missing)}; accepted: {', '.join(_IMAGENET)}")
    classes = sorted(_members(train))
    wnids = [Path(member.name).stem for member in classes]
    examples = [
        (train, image, label)
        for label, member in enumerate(classes)
        for image in sorted(_members(train, member.start, member.size))
    ]
    truth = _validation_wnids(devkit)
    images = sorted(_members(val))
    if len(images) != len(truth):
        raise InputError(f"{val} holds {len(images)} images, {devkit.name} labels {len(truth)}")
    if unknown := sorted(set(truth) - set(wnids)):
        raise InputError(f"{devkit}: classes {', '.join(unknown[:5])} are not in {train.name}")
    number = {wnid: i for i, wnid in enumerate(wnids)}
    held_out = [(val, image, number[wnid]) for image, wnid in zip(images, truth, strict=True)]
    return tuple(wnids), {"train": _spans(examples), "val": _spans(held_out)}


def _validation_wnids(devkit: Path) -> list[str]:
    """The class of every validation image, in the order of their numbers."""
    from scipy.io import loadmat  # half a second to import

    try:
        with tarfile.open(devkit, "r:gz") as archive:
            names = {Path(name).name: name for name in archive.getnames()}
            truth = archive.extractfile(names["ILSVRC2012_validation_ground_truth.txt"]).read()
            meta = archive.extractfile(names["meta.mat"]).read()
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        wnid = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        return [wnid[int(line)] for line in truth.split()]
    except (OSError, EOFError, zlib.error, tarfile.TarError, KeyError, ValueError) as error:
        raise InputError(f"{devkit} cannot be read as ImageNet's development kit ({error})") from error
