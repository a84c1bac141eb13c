"""TensorFlow datasets, read without TensorFlow."""

import dataclasses
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
        import tensorflow_datasets as tfds  # seconds to import

        self._name = name
        try:
            splits = tfds.data_source(name, data_dir=data_dir)
            features = next(iter(splits.values())).dataset_info.features
            if not (
                isinstance(features.get("image"), tfds.features.Image)
                and isinstance(features.get("label"), tfds.features.ClassLabel)
                and features["image"].dtype != np.float32
            ):
                raise InputError(
                    f"tfds:{name} has the features {', '.join(features)}; accepted: image and label"
                )
            splits = tfds.data_source(name, data_dir=data_dir, decoders={"image": tfds.decode.SkipDecoding()})
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # its builders raise anything, from every library they use
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            place = data_dir or "its default directory"
            raise InputError(
                f"tfds:{name} cannot be prepared or read from {place} without TensorFlow: {reason}"
            ) from error
        self._features = features
        test = next((s for s in ("test", "validation") if s in splits and splits[s][0]["label"] >= 0), None)
        if "train" not in splits or test is None:
            accepted = "accepted: train, and test or validation with labels"
            raise InputError(f"tfds:{name} has the splits {', '.join(splits)}; {accepted}")
        self._splits = {"train": splits["train"], "test": splits[test]}

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
