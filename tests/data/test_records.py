"""TensorFlow datasets, written and read without TensorFlow."""

import io
import pickle
import sys
from typing import ClassVar

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from crate_jax import InputError
from crate_jax.data import evaluation, inspect, load, train


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    FEATURES: ClassVar = {
        "image": tfds.features.Image(shape=(12, 10, 3)),
        "label": tfds.features.ClassLabel(names=["a", "b"]),
    }
    SPLITS: ClassVar[dict[str, int]] = {}
    UNLABELLED = ()

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.FEATURES))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split):
        for i in range(self.SPLITS[split]):
            encoded = cv2.imencode(".png", np.full((12, 10, 3), (9, 5, i), np.uint8))[1]  # blue, green, red
            label = -1 if split in self.UNLABELLED else i % 2
            yield i, {"image": io.BytesIO(encoded.tobytes()), "label": label}


class CrateWithTest(_Builder):
    SPLITS: ClassVar = {"train": 20, "test": 7, "validation": 3}


class CrateWithValidation(_Builder):
    SPLITS: ClassVar = {"train": 6, "validation": 3}


class CrateUnlabelledTest(_Builder):
    SPLITS: ClassVar = {"train": 6, "test": 4, "validation": 3}
    UNLABELLED = ("test",)


class CrateTrainOnly(_Builder):
    SPLITS: ClassVar = {"train": 6}


class CrateText(_Builder):
    FEATURES: ClassVar = {"text": tfds.features.Text()}
    SPLITS: ClassVar = {"train": 2, "test": 2}

    def _generate_examples(self, split):
        yield from ((i, {"text": "x"}) for i in range(2))


class CrateOffline(_Builder):
    def _split_generators(self, dl_manager):
        raise ConnectionError("no route\nto host")


@pytest.fixture
def tfds_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.utils.gcs_utils, "_is_gcs_disabled", True)
    return str(tmp_path)


def refusal(name: str, data_dir: str) -> str:
    with pytest.raises(InputError) as error:
        inspect(name, data_dir=data_dir)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_dataset_is_described_and_read(tfds_dir):
    name = "tfds:crate_with_test"
    info = inspect(name, data_dir=tfds_dir)
    assert (info.name, info.image_size, info.channels, info.max_value) == (name, 10, 3, 255)
    assert info.class_names == ("a", "b") and info.num_classes == 2
    assert info.num_examples == {"train": 20, "test": 7}
    source = load(name, "test", image_size=10, channels=3, data_dir=tfds_dir)
    source = pickle.loads(pickle.dumps(source))
    seen = [source[i] for i in range(len(source))]
    assert {example["label"].dtype for example in seen} == {np.dtype(np.int32)}
    assert sorted(tuple(example["image"][4, 4].tolist()) for example in seen) == [(i, 5, 9) for i in range(7)]
    assert all(example["image"][0, 0, 0] % 2 == example["label"] for example in seen)
    (batch,) = evaluation(load(name, "test", image_size=8, channels=1, data_dir=tfds_dir), batch_size=8)
    assert batch["image"].shape == (8, 8, 8, 1) and batch["mask"].sum() == 7


def test_prepared_dataset_is_read_without_its_builder(tfds_dir):
    class CrateForgotten(CrateWithTest, skip_registration=True):
        pass

    CrateForgotten(data_dir=tfds_dir, file_format="array_record").download_and_prepare()
    assert inspect("tfds:crate_forgotten", data_dir=tfds_dir).num_examples == {"train": 20, "test": 7}


def test_dataset_prepared_for_tensorflow_is_refused(tfds_dir, tmp_path):
    inspect("tfds:crate_with_test", data_dir=tfds_dir)
    (directory,) = (tmp_path / "crate_with_test").iterdir()
    for path in [directory / "dataset_info.json", *directory.glob("*.array_record*")]:
        if path.suffix == ".json":
            path.write_text(path.read_text().replace("array_record", "tfrecord"))
        else:
            path.rename(str(path).replace("array_record", "tfrecord"))
    message = refusal("tfds:crate_with_test", tfds_dir)
    assert message.startswith(
        f"tfds:crate_with_test cannot be prepared or read from {tfds_dir} without TensorFlow"
    )
    assert "already set to FileFormat.TFRECORD" in message


def test_threads_read_the_same_as_random_access(tfds_dir):
    batches = train(
        load("tfds:crate_with_test", "train", image_size=10, channels=3, data_dir=tfds_dir),
        batch_size=8,
        seed=0,
    )
    for step, batch in zip(range(12), batches.iterate(0), strict=False):
        np.testing.assert_array_equal(batch["image"], batches.batch(step)["image"])


@pytest.mark.parametrize("name", ["tfds:crate_with_validation", "tfds:crate_unlabelled_test"])
def test_validation_stands_in_for_a_test_split_without_labels(tfds_dir, name):
    assert inspect(name, data_dir=tfds_dir).num_examples == {"train": 6, "test": 3}
    assert len(load(name, "test", image_size=4, channels=1, data_dir=tfds_dir)) == 3


def test_datasets_that_do_not_fit_are_refused(tfds_dir):
    assert refusal("tfds:crate_train_only", tfds_dir) == (
        "tfds:crate_train_only has the splits train; accepted: train, and test or validation with labels"
    )
    assert (
        refusal("tfds:crate_text", tfds_dir)
        == "tfds:crate_text has the features text; accepted: image, label"
    )


def test_datasets_that_cannot_be_prepared_are_refused(tfds_dir):
    message = refusal("tfds:crate_offline", tfds_dir)
    assert message.startswith(
        f"tfds:crate_offline cannot be prepared or read from {tfds_dir} without TensorFlow ("
    )
    assert "no route to host" in message
    assert "crate_nowhere" in refusal("tfds:crate_nowhere", tfds_dir)


def test_tensorflow_is_not_imported(tfds_dir):
    inspect("tfds:crate_with_test", data_dir=tfds_dir)
    assert "tensorflow" not in sys.modules
