"""TensorFlow datasets, read without TensorFlow."""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from crate_jax import InputError
from crate_jax.data import transforms
from crate_jax.data.dataset import DatasetInfo, Source, natural_shape


@dataclasses.dataclass(frozen=True)
class _Records:
    """A source over the still encoded records of a TensorFlow dataset."""

    records: Sequence[dict[str, Any]]
    name: str
    size: int
    channels: int

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        image = transforms.decode(
            record["image"], channels=self.channels, where=f"tfds:{self.name}, example {index}"
        )
        image = transforms.fit(image, size=self.size, channels=self.channels)
        return {"image": image, "label": np.int32(record["label"])}


class Tfds:
    def __init__(self, name: str, data_dir: str | None):
        import tensorflow_datasets as tfds  # seconds to import, and only this kind needs it

        self._name = name
        self._features = next(iter(_open(name, data_dir).values())).dataset_info.features
        if not _is_labelled_image(self._features):
            raise InputError(
                f"tfds:{name} has the features {', '.join(self._features)}; accepted: image, label"
            )
        # `transforms.decode` converts while it decodes, and knows the damaged and the exotic.
        splits = _open(name, data_dir, decoders={"image": tfds.decode.SkipDecoding()})
        # Some test splits (ImageNet's) come without labels, which are then −1.
        labelled = [s for s in ("test", "validation") if splits.get(s) and splits[s][0]["label"] >= 0]
        if not splits.get("train") or not labelled:
            accepted = "accepted: train, and test or validation with labels"
            raise InputError(f"tfds:{name} has the splits {', '.join(splits)}; {accepted}")
        self._splits = {"train": splits["train"], "test": splits[labelled[0]]}

    def info(self, name: str) -> DatasetInfo:
        records = self._splits["train"]
        size, channels = natural_shape(
            len(records), lambda i: transforms.decode(records[i]["image"], where=f"{name}, example {i}")
        )
        return DatasetInfo(
            name=name,
            image_size=size,
            channels=channels,
            num_classes=self._features["label"].num_classes,
            class_names=tuple(self._features["label"].names),
            max_value=255,
            num_examples={split: len(records) for split, records in self._splits.items()},
        )

    def load(self, split: str, size: int, channels: int) -> Source:
        return _Records(self._splits[split], self._name, size, channels)


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
