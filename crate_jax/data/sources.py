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
                      [n, h, w, 1 or 3], labels integers or strings [n] or [n, 1]
``tfds:NAME``         a TensorFlow dataset with the features image and label, read without TensorFlow
``stdlib``            text: the source code of Python's own library, the modules at its top; about 5 MB
``text:PATH``         text: a file, or a folder of files, or one with train/ and test/; of a text without a
                      test part the last tenth is held out
====================  ======================================================================================

A held-out fifth is the same in every run, whatever the seed. Splits are asked for as in TensorFlow datasets, see
`dataset.select`.
"""

import dataclasses
from pathlib import Path
from typing import Any

from crate_jax import InputError
from crate_jax.data import transforms
from crate_jax.data.arrays import Digits, Npz
from crate_jax.data.dataset import Dataset, DatasetInfo, Joined, Part, Source, select
from crate_jax.data.folders import Folder
from crate_jax.data.parquet import Parquet
from crate_jax.data.records import ArrayRecord, Tfds
from crate_jax.data.tars import Tars
from crate_jax.data.text import Text

__all__ = ["Dataset", "DatasetInfo", "Fitted", "Source", "Text", "find", "inspect", "load", "load_text"]

_PATHS = {"array_record": ArrayRecord, "tar": Tars, "parquet": Parquet, "npz": Npz}


def inspect(
    name: str,
    *,
    train: str = "train",
    test: str = "test",
    data_dir: str | None = None,
    exclude: str | None = None,
    dataset: Dataset | Text | None = None,
) -> DatasetInfo:
    """Says what a dataset holds, looking at a few images at most.

    Args:
        name: see the table above.
        train: the split that is trained on.
        test: the split that is tested on.
        data_dir: where TensorFlow datasets are kept; None takes their default.
        exclude: a directory that is not data although it may lie in the folder (the run's own).
        dataset: what `find` gave for this name; None looks for it, which takes its time for many files.

    Raises:
        InputError: an unknown name or split, or data that are missing or not in an accepted form.
    """
    dataset = dataset or find(name, data_dir=data_dir, exclude=exclude)
    if isinstance(dataset, Text):
        return dataset.info(name)
    info = dataset.info(name)
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
    data_dir: str | None = None,
    exclude: str | None = None,
    dataset: Dataset | Text | None = None,
) -> Source:
    """The examples of a split.

    Args:
        name: see the table above.
        split: such as "train", "test" or "train[:90%]".
        image_size: see `transforms.fit`; None leaves the images as they are stored.
        channels: 1 (grey) or 3 (RGB); goes with ``image_size``.
        resize, stretch: see `transforms.fit`.
        data_dir: where TensorFlow datasets are kept; None takes their default.
        exclude: a directory that is not data although it may lie in the folder (the run's own).
        dataset: what `find` gave for this name; None looks for it, which takes its time for many files.

    Raises:
        InputError: as `inspect`, or a split, size or number of channels that does not exist.
    """
    if image_size is not None and min(transforms.sides(image_size)) < 1:
        raise InputError(f"image size is {image_size}; accepted: 1 pixel or more")
    if image_size is not None and channels not in (1, 3):
        raise InputError(f"number of channels is {channels}; accepted: 1 (grey), 3 (RGB)")
    dataset = dataset or find(name, data_dir=data_dir, exclude=exclude)
    chosen = select(split, dataset.splits)
    parts = tuple(
        dataset.load(own) if len(examples) == dataset.splits[own] else Part(dataset.load(own), examples)
        for own, examples in chosen
    )
    source = parts[0] if len(parts) == 1 else Joined(parts)
    return source if image_size is None else Fitted(source, image_size, channels, resize, stretch)


def load_text(
    name: str, use: str, *, length: int, exclude: str | None = None, dataset: Text | None = None
) -> Source:
    """The windows of a text, see `text.Text.windows`.

    Args:
        name: ``stdlib`` or ``text:PATH``.
        use: "train" or "test".
        length: bytes of a window.
        exclude: a directory that is no text although it may lie in the folder (the run's own).
        dataset: what `find` gave for this name; None looks for it.

    Raises:
        InputError: a text that is missing, empty, or shorter than a window.
    """
    return (dataset or find(name, exclude=exclude)).windows(use, length)


def find(name: str, *, data_dir: str | None = None, exclude: str | None = None) -> Dataset | Text:
    """The dataset of a name, its files listed and checked.

    Args:
        name: see the table above.
        data_dir: where TensorFlow datasets are kept; None takes their default.
        exclude: a directory that is not data although it may lie in the folder (the run's own).

    Raises:
        InputError: an unknown name, or data that are missing or not in an accepted form.
    """
    kind, _, rest = name.partition(":")
    if name == "digits":
        return Digits()
    if name == "stdlib":
        return Text.standard_library()
    if kind == "text" and rest:
        return Text(Path(rest).expanduser(), exclude)
    if kind == "folder" and rest:
        return Folder(Path(rest).expanduser(), exclude)
    if kind in _PATHS and rest:
        return _PATHS[kind](Path(rest).expanduser())
    if kind == "tfds" and rest:
        return Tfds(rest, data_dir)
    accepted = ", ".join(
        ("digits", "tfds:NAME", "folder:PATH", *(f"{kind}:PATH" for kind in _PATHS), "stdlib", "text:PATH")
    )
    raise InputError(f"unknown dataset {name!r}; accepted: {accepted}")


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
