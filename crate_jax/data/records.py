"""Records in the form of TensorFlow datasets, read without TensorFlow."""

import dataclasses
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crate_jax import InputError
from crate_jax.data import transforms
from crate_jax.data.dataset import TEST_SPLITS, LabelledImages, Source


@dataclasses.dataclass(frozen=True)
class _Records:
    """A source over the still encoded records of a TensorFlow dataset."""

    records: Sequence[dict[str, Any]]
    name: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        where = f"{self.name}, example {index}"
        if "file_name" in record:
            where += f", {os.fsdecode(record['file_name'])}"
        return {"image": transforms.Encoded(record["image"], where), "label": np.int32(record["label"])}


@dataclasses.dataclass(frozen=True)
class _Unparsed:
    """Serialised records as dicts; the general parser of TFDS takes several times as long."""

    records: Sequence[bytes]
    where: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            feature = tf_example_pb2.Example.FromString(self.records[index]).features.feature
            record = {
                "image": feature["image"].bytes_list.value[0],
                "label": feature["label"].int64_list.value[0],
            }
        except (
            RuntimeError,
            IndexError,
            DecodeError,
        ) as error:  # The first is array_record's, and names the file.
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
            raise InputError(f"{self.where}, example {index}: damaged record ({reason})") from error
        if "file_name" in feature:
            record["file_name"] = feature["file_name"].bytes_list.value[0]
        return record


class _Labelled(LabelledImages):
    """Prepared records with the features image and label."""

    def __init__(self, name: str, features: Any, splits: dict[str, Sequence[dict[str, Any]]]):
        self._name = name
        if not _is_labelled_image(features):
            raise InputError(f"{name} has the features {', '.join(features)}; accepted: image, label")
        # Some test splits (ImageNet's) come without labels, which are then −1.
        self._splits = {
            split: records for split, records in splits.items() if records and records[0]["label"] >= 0
        }
        if "train" not in self._splits or not self._splits.keys() & set(TEST_SPLITS):
            accepted = "accepted: train, and test or validation with labels"
            raise InputError(f"{name} has the splits {', '.join(splits)}; {accepted}")
        self.splits = {split: len(records) for split, records in self._splits.items()}
        self.classes = tuple(features["label"].names)

    def load(self, split: str) -> Source:
        return _Records(self._splits[split], self._name)


class Tfds(_Labelled):
    """A TensorFlow dataset by its name, downloaded and prepared where that needs no TensorFlow."""

    def __init__(self, name: str, data_dir: str | None):
        features = next(iter(_open(name, data_dir).values())).dataset_info.features
        super().__init__(f"tfds:{name}", features, _open(name, data_dir, decoders=_undecoded()))


class ArrayRecord(_Labelled):
    """A folder of array_record files in the form of TensorFlow datasets."""

    def __init__(self, path: Path):
        accepted = "accepted: what python -m crate_jax.prepare or TensorFlow datasets wrote as array_record"
        if not (path / "dataset_info.json").is_file():
            half = "is not finished: start its preparation again" if (path / "prepare.json").is_file() else ""
            raise InputError(f"folder {path} {half or 'holds no dataset_info.json'}; {accepted}")
        import tensorflow_datasets as tfds  # seconds to import, and only this kind needs it

        try:
            builder = tfds.builder_from_directory(path)
            raw = builder.as_data_source(deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
            for split in raw:
                _check_shards(builder.info.splits[split])
            splits = {
                split: _Unparsed(records, f"array_record:{path}, {split}") for split, records in raw.items()
            }
        except InputError:
            raise
        # Whatever the libraries raise over damaged files or another format.
        except Exception as error:
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
            raise InputError(f"folder {path} cannot be read ({reason}); {accepted}") from error
        super().__init__(f"array_record:{path}", builder.info.features, splits)


def _check_shards(split: Any) -> None:
    """Raise unless each file of a split is there and holds the records that it had when it was written."""
    from array_record.python import array_record_module

    for path, expected in zip(split.filepaths, split.shard_lengths, strict=True):
        if not os.path.isfile(path):
            raise InputError(f"{path} is missing; accepted: all files that were written")
        try:
            reader = array_record_module.ArrayRecordReader(os.fspath(path))
            found = reader.num_records()
            reader.close()
        except RuntimeError as error:
            raise InputError(f"{path} is damaged ({textwrap.shorten(str(error), 200)})") from error
        if found != expected:
            raise InputError(f"{path} is damaged: it holds {found:,} records, {expected:,} were written")


def _undecoded() -> dict[str, Any]:
    """Images as they are stored: `transforms.decode` converts while it decodes, and knows the damaged and the exotic."""
    import tensorflow_datasets as tfds

    return {"image": tfds.decode.SkipDecoding()}


def _open(name: str, data_dir: str | None, **options) -> dict[str, Sequence[dict[str, Any]]]:
    import tensorflow_datasets as tfds

    try:
        # TFDS would write another format, which needs TensorFlow, when it is given a directory.
        array_record = {"file_format": "array_record"}
        return tfds.data_source(name, data_dir=data_dir, builder_kwargs=array_record, **options)
    # A builder may raise whatever the libraries raise that it downloads and parses with.
    except Exception as error:
        place = f"from {data_dir or 'the default data_dir'} without TensorFlow"
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 500)
        raise InputError(f"tfds:{name} cannot be prepared or read {place} ({reason})") from error


def _is_labelled_image(features: Any) -> bool:
    import tensorflow_datasets as tfds

    # A float image is stored as a PNG of its bytes: it is not a picture with 8 bits a channel.
    return (
        {"image", "label"} <= set(features)
        and isinstance(features["image"], tfds.features.Image)
        and features["image"].np_dtype != np.float32
        and isinstance(features["label"], tfds.features.ClassLabel)
    )
