"""Images in tar files, read where they lie: an index of places is made once, then any example is one read away."""

import dataclasses
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from crate_jax import InputError
from crate_jax.data import transforms
from crate_jax.data.dataset import LabelledImages, Source, by_split, class_name, digest, natural, numbered
from crate_jax.data.folders import IMAGE_SUFFIXES

# What a label's file is called, after the name of its image.
_LABELS = (".cls", ".cls.txt", ".json")
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
        self._root = path
        if any((path / name).is_file() for name in _IMAGENET):
            self.classes, self._sources = _imagenet(path)
        else:
            self.classes, self._sources, self.notes = _archives(path)
        self.splits = {split: len(source) for split, source in self._sources.items()}

    def load(self, split: str) -> Source:
        return self._sources[split]

    def fingerprint(self) -> str:
        parts: list[str | bytes] = []
        for split, source in self._sources.items():
            names = (path.removeprefix(str(self._root)) for path in source.paths)
            parts += [
                split,
                *names,
                *map(str, source.names),
                source.places.tobytes(),
                source.labels.tobytes(),
            ]
        return digest(parts)


def _members(path: Path, start: int = 0, size: int | None = None) -> Iterator[_Member]:
    """The files, but hidden ones, in an uncompressed tar file: a file or the part [start, start + size) of one.

    A hard link, which tar writes for the second name of a file, stands for what it links to.

    Raises:
        InputError: no tar file, one that is not whole, or a link to what is not in it.
    """
    places: dict[str, tuple[int, int]] = {}
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
                    if member.isfile() and not member.issparse():
                        places[member.name] = member.offset_data, member.size
                    elif member.islnk() and member.linkname in places:
                        places[member.name] = places[member.linkname]
                    elif not member.isdir() and member.name.lower().endswith(IMAGE_SUFFIXES):
                        raise InputError(
                            f"{path}: {member.name} is a link or no ordinary file; accepted: files, and hard links to what "
                            "stands before them"
                        )
                    if member.name in places and not member.name.rpartition("/")[2].startswith("."):
                        yield _Member(member.name, *places[member.name])
                _check_end(path, file, archive.offset, end)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path} cannot be read as an uncompressed tar file ({error})") from error


def _check_end(path: Path, file: BinaryIO, offset: int, end: int) -> None:
    """Raise unless a tar file ends at ``offset``, where tarfile has stopped: with a block of zeros, and zeros after it."""
    file.seek(offset)
    mark = file.read(min(tarfile.BLOCKSIZE, end - offset))
    if len(mark) < tarfile.BLOCKSIZE or any(mark):
        what = (
            f"is damaged at byte {offset:,}"
            if len(mark) == tarfile.BLOCKSIZE
            else "ends without tar's end mark"
        )
        raise InputError(f"{path} {what}; the file is not complete")
    # Tar fills up the last record, and writes no more zeros than that.
    most = 2 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE
    if end - offset >= most or any(file.read(end - file.tell())):
        raise InputError(
            f"{path} goes on for {end - offset:,} bytes after its end mark, at byte {offset:,}: it has a hole, or is "
            "several archives one after the other; accepted: one whole archive (tar --concatenate makes one of several)"
        )


def _spans(found: list[tuple[Path, _Member, int]]) -> _Spans:
    paths = list(dict.fromkeys(str(path) for path, _, _ in found))
    number = {path: i for i, path in enumerate(paths)}
    return _Spans(
        tuple(paths),
        np.array([member.name for _, member, _ in found]),
        np.array([(number[str(path)], member.start, member.size) for path, member, _ in found], np.int64),
        np.array([label for _, _, label in found], np.int32),
    )


def _archives(path: Path) -> tuple[tuple[str, ...], dict[str, _Spans], tuple[str, ...]]:
    """WebDataset's form, where the files of an example share their name up to the first dot, or CLASS/NAME.jpg."""
    found, left_out = {}, []
    for split, files in by_split(path, ".tar").items():
        found[split] = []
        for file in files:
            examples, others = _examples(file)
            found[split] += examples
            left_out += [f"{file.name}/{member.name}" for member in others]
    classes = {label for examples in found.values() for _, _, label in examples}
    if not all(found.values()) or len(classes) < 2:
        accepted = (
            "accepted: NAME.jpg with NAME.cls (or a label in NAME.json), or CLASS/NAME.jpg, of two classes"
        )
        raise InputError(f"tar:{path} holds {len(classes)} classes in {', '.join(found)}; {accepted}")
    names, labels = _numbers_of(classes, path)
    sources = {
        split: _spans([(file, member, labels[label]) for file, member, label in examples])
        for split, examples in found.items()
    }
    notes = ()
    if left_out:
        notes = (
            f"tar:{path}: {len(left_out):,} images without a label of their own are left out, such as {left_out[0]}",
        )
    return names, sources, notes


def _numbers_of(classes: set[str], path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """The names of all classes, and the number of each label."""
    names = tuple(sorted(classes, key=natural))
    numbers = [int(name) for name in names if name.isdecimal()]
    if len(set(numbers)) < len(numbers):
        raise InputError(
            f"tar:{path}: two labels are one number, written differently; accepted: one way of writing it"
        )
    # What is written as 007 is a name.
    numeric = all(name.isdecimal() and str(int(name)) == name for name in names)
    if (path / "classes.txt").is_file():
        given = tuple((path / "classes.txt").read_text(encoding="utf-8").splitlines())
        if not numeric or len(given) <= numbers[-1]:
            largest = f"up to {numbers[-1]:,}" if numeric else f"such as {names[0]}"
            raise InputError(f"tar:{path}: classes.txt has {len(given)} names, the labels are {largest}")
        return given, {str(i): i for i in range(len(given))}
    names = numbered(numbers, f"tar:{path}") if numeric else names
    return names, {name: i for i, name in enumerate(names)}


def _examples(file: Path) -> tuple[list[tuple[Path, _Member, str]], list[_Member]]:
    """The images of a tar file with their labels, and those that are no examples of their own."""
    images: dict[str, dict[str, _Member]] = {}
    labels: dict[str, str] = {}
    for member in _members(file):
        folder, _, base = member.name.rpartition("/")
        key = f"{folder}/{base.partition('.')[0]}"
        if member.name.lower().endswith(IMAGE_SUFFIXES):
            stem = f"{folder}/{base.rpartition('.')[0]}"
            same = images.setdefault(key, {})
            if stem in same:
                raise InputError(
                    f"{file}: {same[stem].name} and {member.name} have one name; accepted: one image of each"
                )
            same[stem] = member
        elif (suffix := next((suffix for suffix in _LABELS if base.endswith(suffix)), None)) is not None:
            stem = f"{folder}/{base.removesuffix(suffix)}"
            label = _label(file, member)
            if suffix == ".json":
                labels.setdefault(stem, label)
            else:
                labels[stem] = label
    examples, left_out = [], []
    for key, same in images.items():
        found = {stem: labels.get(stem) for stem in same}
        if not labels:
            found = {stem: class_name(stem.rpartition("/")[0].rpartition("/")[2]) for stem in same}
        elif not any(found.values()) and len(same) == 1:
            found = dict.fromkeys(same, labels.get(key))  # NAME.image.jpg with NAME.cls.
        if not any(found.values()):
            member = next(iter(same.values()))
            raise InputError(f"{file}: {member.name} has no label; accepted: {Path(key).name}.cls beside it")
        examples += [(file, same[stem], label) for stem, label in found.items() if label]
        left_out += [
            same[stem] for stem, label in found.items() if not label
        ]  # Such as NAME.seg.png beside NAME.jpg.
    return examples, left_out


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
