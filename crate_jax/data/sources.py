"""Datasets by name: where labelled images come from.

==================  ======================================================================================
``digits``          scikit-learn's 1,797 scans of 8×8 pixels and 17 grey levels; a stratified fifth (360)
                    is the test split
``folder:PATH``     PATH/train/CLASS/* with PATH/test/CLASS/* (or val/CLASS/*), or PATH/CLASS/*, of which
                    a stratified fifth is held out; JPEG, PNG, WebP, BMP, TIFF and PNM files count
``npz:PATH``        arrays x_train, y_train, x_test, y_test (as Keras' mnist.npz), or images and labels, of
                    which a stratified fifth is held out; images are uint8 [n, h, w] or
                    [n, h, w, 1 or 3], labels integers or strings [n] or [n, 1]
``tfds:NAME``       a TensorFlow dataset with the features image and label, read without TensorFlow; the
                    test split is ``test``, or ``validation`` where there is no labelled ``test``
==================  ======================================================================================

A held-out fifth is the same in every run, whatever the seed.
"""

from pathlib import Path

from crate_jax import InputError
from crate_jax.data.arrays import Digits, Npz
from crate_jax.data.dataset import SPLITS, Dataset, DatasetInfo, Source
from crate_jax.data.folders import Folder
from crate_jax.data.records import Tfds

__all__ = ["DatasetInfo", "Source", "inspect", "load"]


def inspect(name: str, *, data_dir: str | None = None, exclude: str | None = None) -> DatasetInfo:
    """Says what a dataset holds, looking at a few images at most.

    Args:
        name: see the table above.
        data_dir: where TensorFlow datasets are kept; None takes their default.
        exclude: a directory that is not data although it may lie in the folder (the run's own).

    Raises:
        InputError: an unknown name, or data that are missing or not in an accepted form.
    """
    return _open(name, data_dir, exclude).info(name)


def load(
    name: str,
    split: str,
    *,
    image_size: int,
    channels: int,
    data_dir: str | None = None,
    exclude: str | None = None,
) -> Source:
    """The examples of a split, converted to one shape.

    Args:
        name: see the table above.
        split: "train" or "test".
        image_size: height and width; images are cut to their centre square and resized.
        channels: 1 (grey) or 3 (RGB).
        data_dir: where TensorFlow datasets are kept; None takes their default.
        exclude: a directory that is not data although it may lie in the folder (the run's own).

    Raises:
        InputError: as `inspect`, or a split, size or number of channels that does not exist.
    """
    if split not in SPLITS:
        raise InputError(f"split is {split!r}; accepted: {', '.join(SPLITS)}")
    if image_size < 1:
        raise InputError(f"image size is {image_size}; accepted: 1 pixel or more")
    if channels not in (1, 3):
        raise InputError(f"number of channels is {channels}; accepted: 1 (grey), 3 (RGB)")
    return _open(name, data_dir, exclude).load(split, image_size, channels)


def _open(name: str, data_dir: str | None, exclude: str | None) -> Dataset:
    kind, _, rest = name.partition(":")
    if name == "digits":
        return Digits()
    if kind == "folder" and rest:
        return Folder(Path(rest).expanduser(), exclude)
    if kind == "npz" and rest:
        return Npz(Path(rest).expanduser())
    if kind == "tfds" and rest:
        return Tfds(rest, data_dir)
    raise InputError(f"unknown dataset {name!r}; accepted: digits, tfds:NAME, folder:PATH, npz:PATH")
