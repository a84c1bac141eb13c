"""What every dataset has in common, whatever it holds and wherever it lies."""

import dataclasses
import hashlib
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from crate_jax import InputError
from crate_jax.data import transforms

SPLITS = ("train", "test")
# The split that is tested on has several names; the first one with labels is taken.
TEST_SPLITS = ("test", "val", "validation", "valid")
# What is cut into windows, which overlap in training.
WINDOWED = ("text", "pixels")
_SAMPLE = 64  # images looked at to find the natural size of a dataset that does not state it


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Sequences of whole numbers, the tokens.

    Attributes:
        vocab_size: tokens are 0 … vocab_size − 1.
        unit: what one is called, such as "byte".
        kind: what a sequence of them is called, such as "text".
        length: tokens in an example; None: examples are as long as the model asks for (see `Dataset.cut`).
        symbols: the character of each token; None: tokens are the bytes of UTF-8.
        floor: the entropy in nats of each token of an example, given those before it, where it is known exactly.
        answer: where in an example what follows from the tokens before begins; None: nowhere.
    """

    vocab_size: int
    unit: str = "token"
    kind: str = "tokens"
    length: int | None = None
    symbols: str | None = None
    floor: tuple[float, ...] | None = None
    answer: int | None = None

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, int32 [n].

        Raises:
            InputError: a character that is no token.
        """
        if self.symbols is None:
            return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        if unknown := sorted(set(text) - set(self.symbols)):
            raise InputError(f"text: found {unknown[0]!r}; accepted: the characters {self.symbols}")
        return np.array([self.symbols.index(character) for character in text], np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens [n]; what is no UTF-8 becomes a replacement character."""
        if self.symbols is None:
            return tokens.astype(np.uint8).tobytes().decode(errors="replace")
        return "".join(self.symbols[token] for token in tokens)


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a dataset holds, before any conversion: labelled images, or sequences of tokens.

    Attributes:
        name: the name it was asked for by.
        image_size: height and width of the images (what stands down to ``max_value`` is of images); the median short side
            where they are not square or vary.
        channels: 1 (grey) or 3 (RGB).
        num_classes: number of classes.
        class_names: their names; the label is the place in this tuple.
        max_value: the pixel value that means white.
        num_examples: number of examples in "train" and in "test", as they are used.
        tokens: what the tokens are; None for images.
        fingerprint: a digest of names and sizes of the files that it consists of; "" where nothing is known of them.
    """

    name: str
    image_size: int = 0
    channels: int = 0
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    max_value: int = 0
    num_examples: dict[str, int] = dataclasses.field(default_factory=dict)
    tokens: Tokens | None = None
    fingerprint: str = ""

    @property
    def kind(self) -> str:
        """What an example is, for people."""
        return self.tokens.kind if self.tokens else "images"

    def cut(self, length: int) -> "DatasetInfo":
        """As it is once sequences that leave their length open are cut into windows of ``length`` tokens."""
        if self.tokens is None or self.tokens.length is not None:
            return self
        counts = {split: count // length for split, count in self.num_examples.items()}
        tokens = dataclasses.replace(self.tokens, length=length)
        return dataclasses.replace(self, num_examples=counts, tokens=tokens)

    def example(self, shape: tuple[int, ...] | None) -> dict[str, tuple[tuple[int, ...], type]]:
        """The entries of an example that a model reads, name → (shape, type); ``shape`` is that of its images."""
        if self.tokens is None:
            return {"image": (shape, np.uint8), "label": ((), np.int32)}
        return {"tokens": ((self.tokens.length,), np.uint8 if self.tokens.vocab_size <= 256 else np.int32)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], length: int | None) -> "DatasetInfo":
        """From what `dataclasses.asdict` became in a file; older files say ``kind`` and mean bytes by "text".

        Args:
            values: the content of the file.
            length: of a text's windows, which older files leave to the model.
        Raises:
            TypeError, KeyError, ValueError, AttributeError: they describe no dataset.
        """
        values = {**values, "class_names": tuple(values["class_names"])}
        kind, tokens = values.pop("kind", "images"), values.pop("tokens", None)
        if tokens is not None:
            floor = tokens.get("floor")
            tokens = Tokens(**{**tokens, "floor": None if floor is None else tuple(floor)})
        elif kind == "text":
            tokens = Tokens(256, "byte", "text", length)
        found = cls(**values, tokens=tokens)
        for field in dataclasses.fields(cls):
            value = getattr(found, field.name)
            if field.type in (int, str) and type(value) is not field.type:
                raise TypeError(f"{field.name} is {value!r}")
        if not all(type(count) is int and count >= 0 for count in found.num_examples.values()):
            raise ValueError(f"num_examples is {found.num_examples!r}")
        return found


class Source(Protocol):
    """Examples by index; may be read by many threads at once and sent to other processes (pickled)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": uint8 [h, w, c] or `transforms.Encoded`, "label": np.int32}, or {"tokens": whole numbers [n]}.

        Raises:
            InputError: it cannot be read.
        """
        ...


class Dataset(Protocol):
    """A dataset that has been opened and checked; one class for each kind of name.

    One that leaves something out says so in `notes`, a tuple of sentences; see `notes_of`.
    """

    # Number of examples by the split's name; "train" and one of TEST_SPLITS are there.
    splits: Mapping[str, int]

    def info(self, name: str) -> DatasetInfo:
        """Says what it holds; ``name`` is what the user called it."""
        ...

    def load(self, split: str) -> Source:
        """The examples of a split as they are stored."""
        ...

    def cut(self, length: int) -> "Dataset":
        """The dataset with examples of ``length`` tokens, where it leaves their length to the model; else itself."""
        ...


class LabelledImages:
    """What all datasets of images have in common. A source sets ``classes`` and ``splits`` and defines `load`."""

    classes: tuple[str, ...]
    splits: Mapping[str, int]
    notes: tuple[str, ...] = ()
    white = 255  # The pixel value.

    def info(self, name: str) -> DatasetInfo:
        size, channels = self.natural_shape()
        return DatasetInfo(
            name=name,
            num_examples=dict(self.splits),
            image_size=size,
            channels=channels,
            num_classes=len(self.classes),
            class_names=self.classes,
            max_value=self.white,
            fingerprint=self.fingerprint(),
        )

    def fingerprint(self) -> str:
        """See `DatasetInfo`."""
        return ""

    def load(self, split: str) -> Source:
        raise NotImplementedError

    def cut(self, length: int) -> Dataset:
        del length
        return self

    def natural_shape(self) -> tuple[int, int]:
        """The size and the number of channels that training images have without conversion."""
        source = self.load("train")
        return median_shape(source, len(source))


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


def median_shape(source: Source, count: int) -> tuple[int, int]:
    """The median short side of some of the first ``count`` images, and 1 channel if all of them are grey."""
    some = spread(Part(source, range(count)), _SAMPLE)
    shapes = [transforms.stored_shape(some[i]["image"]) for i in range(len(some))]
    return int(np.median([min(h, w) for h, w, _ in shapes])), max(c for _, _, c in shapes)


def spread(source: Source, count: int) -> Part:
    """At most ``count`` examples, evenly spread: the first ones of a folder would all be of its first class."""
    return Part(source, np.linspace(0, len(source) - 1, min(count, len(source))).astype(int))


def notes_of(dataset: Dataset) -> tuple[str, ...]:
    """What a dataset has left out, in sentences."""
    return getattr(dataset, "notes", ())


def class_name(name: str) -> str:
    """The name of a class that a file system or an archive calls so: composed (NFC), whatever wrote it, and printable."""
    plain = os.fsencode(name).decode("utf-8", "backslashreplace")  # Bytes that are no UTF-8 become \xNN.
    return unicodedata.normalize("NFC", plain)


# Classes that a dataset may have by number without examples of them: all that there are beside each that occurs.
_UNUSED_CLASSES, _UNUSED_PER_CLASS = 1000, 10


def numbered(labels: Collection[int], where: str) -> tuple[str, ...]:
    """The names of classes that are numbers: they count from 0, whether or not each of them occurs.

    Raises:
        InputError: most of them would be of no example: these are no numbers of classes.
    """
    count = max(labels) + 1
    if count > _UNUSED_CLASSES and count > _UNUSED_PER_CLASS * len(labels):
        raise InputError(
            f"{where}: labels up to {count - 1:,}, of which {len(labels):,} occur; accepted: numbers that count classes "
            "from 0, or names of classes"
        )
    return tuple(str(i) for i in range(count))


def digest(parts: Iterable[str | bytes]) -> str:
    """A short digest of some texts, which tells whether any of them has changed."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else os.fsencode(part))
        found.update(b"\0")
    return found.hexdigest()[:16]


# A file's size is asked for on disk: of so many files, evenly spread, at most.
_SIZES = 4096


def digest_of_files(root: Path | str, paths: Iterable[Path | str]) -> str:
    """A digest of the names of files, relative to ``root``, and of the sizes of up to 4,096 of them."""
    paths = [os.fspath(path) for path in paths]
    names = [path.removeprefix(os.fspath(root)) for path in paths]
    some = paths[:: -(-len(paths) // _SIZES) or 1]
    sizes = (str(os.stat(path).st_size) if os.path.exists(path) else "" for path in some)
    return digest([*names, *sizes])


def natural(text: str) -> tuple[list[str | int], str]:
    """Sorting key under which class 10 follows class 9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)], text


def split_of(name: str) -> str | None:
    """The first word of a file's name, or of its folders' names, that names a split."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((word for word in words if word in ("train", *TEST_SPLITS)), None)


def by_split(path: Path, suffix: str) -> dict[str, list[Path]]:
    """The files of a folder that end in ``suffix``, sorted, by the split that their names or their folders begin with.

    Raises:
        InputError: none for train, or none to test on.
    """
    found: dict[str, list[Path]] = {}
    for file in sorted(path.rglob(f"*{suffix}")):
        name = file.relative_to(path)
        hidden = any(part.startswith(".") for part in name.parts)  # ._NAME is what macOS puts beside NAME.
        split = None if hidden else split_of(str(name))
        if split is not None:
            found.setdefault(split, []).append(file)
    if "train" not in found or not found.keys() & set(TEST_SPLITS):
        there = ", ".join(found) or "none"
        accepted = f"accepted: files such as train-0000{suffix} and val-0000{suffix}"
        raise InputError(f"folder {path} holds {suffix} files for the splits: {there}; {accepted}")
    return found
