"""Datasets by name: where labelled images come from, and text.

====================  ======================================================================================
``digits``            scikit-learn's 1,797 scans of 8×8 pixels and 17 grey levels; a stratified fifth (360)
                      is the test split
``folder:PATH``       PATH/train/CLASS/* with PATH/test/CLASS/* (or val/CLASS/*), or PATH/CLASS/*, of which
                      a stratified fifth is held out; JPEG, PNG, WebP, BMP, TIFF and PNM files count
``array_record:PATH`` what ``python -m crate_jax.prepare`` wrote, or any other dataset in the form of
                      TensorFlow datasets' array_record
``tar:PATH``          a folder of tar files whose names say the split: WebDataset's (NAME.jpg with NAME.cls or
                      NAME.json in it) or archives of CLASS/NAME.jpg; or ImageNet's own three
                      (ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz)
``parquet:PATH``      a dataset of Hugging Face on disk, PATH/**/train-*.parquet with the columns image and label
``npz:PATH``          arrays x_train, y_train, x_test, y_test (as Keras' mnist.npz), or images and labels, of
                      which a stratified fifth is held out; images are uint8 [n, h, w] or
                      [n, h, w, 1 or 3], labels integers or strings [n] or [n, 1], or places in
                      an array classes of names; ``python -m crate_jax.prepare`` writes such a file
``tfds:NAME``         a TensorFlow dataset with the features image and label, read without TensorFlow
``addition:OPTIONS``  sums such as 123+456=0579, made exactly, of which some are held out: data of known entropy; the options
                      are those of `addition.AdditionConfig`
``stdlib``            text: the source code of Python's own library, the modules at its top; about 5 MB
``text:PATH``         text: a file, or a folder of files, or one with train/ and test/ (val/, validation/), or with
                      train.txt and test.txt; of a text without a test part the last tenth is held out
``pixels:NAME``       the images of another dataset, such as pixels:tfds:cifar10, as the values of their channels: rows
                      of pixels, which a model of tokens reads as it reads a text
``letters``           1,560 printed capitals of 8×8 pixels and 17 grey levels, 26 classes, as a second data set
                      for models of the digits; a stratified fifth (312) is the test split
====================  ======================================================================================

A held-out fifth is the same in every run, whatever the seed. Splits are asked for as in TensorFlow datasets, see
`dataset.select`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from crate_jax import InputError
from crate_jax.data import transforms
from crate_jax.data.addition import Addition
from crate_jax.data.arrays import Digits, Npz
from crate_jax.data.dataset import Dataset, DatasetInfo, Joined, Part, Source, Tokens, select
from crate_jax.data.folders import Folder
from crate_jax.data.letters import Letters
from crate_jax.data.parquet import Parquet
from crate_jax.data.pixels import CHANNELS, Pixels
from crate_jax.data.records import ArrayRecord, Tfds
from crate_jax.data.tars import Tars
from crate_jax.data.text import BYTES, Text
from crate_jax.settings import nearest

__all__ = ["Dataset", "DatasetInfo", "Fitted", "Source", "Tokens", "inspect", "load", "open_dataset"]


class Place(NamedTuple):
    """Where a dataset is looked for: see `open_dataset`."""

    data_dir: str | None
    exclude: str | None


class Kind(NamedTuple):
    """A kind of dataset.

    Attributes:
        open: opens one, given what follows the colon in its name.
        argument: what that is called; "" where there is nothing.
        tokens: what all datasets of the kind hold, where it is not images.
    """

    open: Callable[[str, Place], Dataset]
    argument: str = "PATH"
    tokens: Tokens | None = None


def _path(text: str) -> Path:
    return Path(text).expanduser()


# What stands before the colon of a name. A new source is its file and one row here.
SOURCES: dict[str, Kind] = {
    "digits": Kind(lambda _, place: Digits(), ""),
    "tfds": Kind(lambda name, place: Tfds(name, place.data_dir), "NAME"),
    "folder": Kind(lambda path, place: Folder(_path(path), place.exclude)),
    "array_record": Kind(lambda path, place: ArrayRecord(_path(path))),
    "tar": Kind(lambda path, place: Tars(_path(path))),
    "parquet": Kind(lambda path, place: Parquet(_path(path))),
    "npz": Kind(lambda path, place: Npz(_path(path))),
    "addition": Kind(lambda options, place: Addition(options), "OPTIONS"),
    "stdlib": Kind(lambda _, place: Text.standard_library(), "", BYTES),
    "text": Kind(lambda path, place: Text(_path(path), place.exclude), tokens=BYTES),
    "pixels": Kind(
        lambda name, place: Pixels(open_dataset(name, data_dir=place.data_dir, exclude=place.exclude), name),
        "NAME",
        CHANNELS,
    ),
    "letters": Kind(lambda _, place: Letters(), ""),
}


def inspect(
    name: str,
    *,
    train: str = "train",
    test: str = "test",
    data_dir: str | None = None,
    exclude: str | None = None,
    dataset: Dataset | None = None,
) -> DatasetInfo:
    """Says what a dataset holds, looking at a few images at most.

    Args:
        name: see the table above.
        train: the split that is trained on.
        test: the split that is tested on.
        data_dir: where TensorFlow datasets are kept; None takes their default.
        exclude: a directory that is not data although it may lie in the folder (the run's own).
        dataset: what `open_dataset` gave for this name; None looks for it, which takes its time for many files.

    Raises:
        InputError: an unknown name or split, or data that are missing or not in an accepted form.
    """
    dataset = dataset or open_dataset(name, data_dir=data_dir, exclude=exclude)
    info = dataset.info(name)
    if info.tokens is not None and info.tokens.length is None:
        return info  # Its examples are cut when their length is known.
    counts = {
        use: sum(len(examples) for _, examples in select(spec, dataset.splits))
        for use, spec in (("train", train), ("test", test))
    }
    return dataclasses.replace(info, num_examples=counts)


def load(
    name: str,
    split: str,
    *,
    image_size: transforms.Size | None = None,
    channels: int | None = None,
    resize: int | None = None,
    stretch: bool = False,
    length: int | None = None,
    most_pixels: int = transforms.MOST_PIXELS,
    data_dir: str | None = None,
    exclude: str | None = None,
    dataset: Dataset | None = None,
) -> Source:
    """The examples of a split.

    Args:
        name: see the table above.
        split: such as "train", "test" or "train[:90%]".
        image_size: see `transforms.fit`; None leaves the images as they are stored.
        channels: 1 (grey) or 3 (RGB); goes with ``image_size``.
        resize, stretch: see `transforms.fit`.
        most_pixels: how many a stored image may have.
        length: tokens of an example, see `Dataset.cut`; of no meaning to images.
        data_dir: where TensorFlow datasets are kept; None takes their default.
        exclude: a directory that is not data although it may lie in the folder (the run's own).
        dataset: what `open_dataset` gave for this name; None looks for it, which takes its time for many files.

    Raises:
        InputError: as `inspect`, or a split, size or number of channels that does not exist.
    """
    if image_size is not None and min(transforms.sides(image_size)) < 1:
        raise InputError(f"image size is {image_size}; accepted: 1 pixel or more")
    if image_size is not None and channels not in (1, 3):
        raise InputError(f"number of channels is {channels}; accepted: 1 (grey), 3 (RGB)")
    dataset = dataset or open_dataset(name, data_dir=data_dir, exclude=exclude)
    if length is not None:
        dataset = dataset.cut(length)
    chosen = select(split, dataset.splits)
    parts = tuple(
        dataset.load(own) if len(examples) == dataset.splits[own] else Part(dataset.load(own), examples)
        for own, examples in chosen
    )
    source = parts[0] if len(parts) == 1 else Joined(parts)
    if most_pixels != transforms.MOST_PIXELS:
        source = _Limited(source, most_pixels)
    return source if image_size is None else Fitted(source, image_size, channels, resize, stretch)


def open_dataset(name: str, *, data_dir: str | None = None, exclude: str | None = None) -> Dataset:
    """The dataset of a name, its files listed and checked.

    Args:
        name: see the table above.
        data_dir: where TensorFlow datasets are kept; None takes their default.
        exclude: a directory that is not data although it may lie in the folder (the run's own).

    Raises:
        InputError: an unknown name, or data that are missing or not in an accepted form.
    """
    kind, _, rest = name.partition(":")
    row = SOURCES.get(kind)
    if row is None or (not rest if row.argument else name != kind):
        names = (f"{kind}:{row.argument}".rstrip(":") for kind, row in SOURCES.items())
        near = nearest(kind, SOURCES)
        hint = f"; did you mean {near}?" if near and near != kind else ""
        raise InputError(f"unknown dataset {name!r}; accepted: {', '.join(names)}{hint}")
    return row.open(rest, Place(data_dir, exclude))


@dataclasses.dataclass(frozen=True)
class _Limited:
    """A source whose images may have other numbers of pixels than usual."""

    source: Source
    most_pixels: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.source[index]
        if isinstance(example.get("image"), transforms.Encoded):
            example = {**example, "image": example["image"]._replace(most_pixels=self.most_pixels)}
        return example


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A source with images of one shape."""

    source: Source
    size: transforms.Size
    channels: int
    resize: int | None = None
    stretch: bool = False

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.source[index]
        shape = {"size": self.size, "channels": self.channels, "resize": self.resize, "stretch": self.stretch}
        return {**example, "image": transforms.fit(example["image"], **shape)}
