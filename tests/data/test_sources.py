"""Datasets by name: digits and .npz files, and what is said of wrong names."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from crate_jax import InputError
from crate_jax.data import inspect, load

RNG = np.random.default_rng(0)


def refusal(name: str, **options) -> str:
    with pytest.raises(InputError) as error:
        inspect(name, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def everything(source) -> tuple[np.ndarray, np.ndarray]:
    examples = [source[i] for i in range(len(source))]
    return np.stack([e["image"] for e in examples]), np.stack([e["label"] for e in examples])


@pytest.mark.parametrize("name", ["digit", "digits:x", "", "folder", "folder:", "npz:", "tfds:", "mnist"])
def test_an_unknown_name_is_refused(name):
    accepted = (
        "digits, tfds:NAME, folder:PATH, array_record:PATH, tar:PATH, parquet:PATH, npz:PATH, addition:OPTIONS, stdlib, "
        "text:PATH, pixels:NAME, letters"
    )
    hint = "; did you mean digits?" if name == "digit" else ""
    assert refusal(name) == f"unknown dataset {name!r}; accepted: {accepted}{hint}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"split": "tests"},
            "split is 'tests'; accepted: train, test, a part of one such as train[:90%], or several joined by +",
        ),
        ({"image_size": 0}, "image size is 0; accepted: 1 pixel or more"),
        ({"channels": 2}, "number of channels is 2; accepted: 1 (grey), 3 (RGB)"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    with pytest.raises(InputError) as error:
        load(**{"name": "digits", "split": "train", "image_size": 8, "channels": 1, **change})
    assert str(error.value) == message


def test_digits():
    info = inspect("digits")
    assert (info.image_size, info.channels, info.num_classes, info.max_value) == (8, 1, 10, 16)
    assert info.num_examples == {"train": 1437, "test": 360}
    assert info.class_names == tuple("0123456789")


def test_digits_hold_out_the_same_stratified_fifth():
    from sklearn.datasets import load_digits

    digits = load_digits()
    train, test = (everything(load("digits", split, image_size=8, channels=1)) for split in ("train", "test"))
    assert (len(train[1]), len(test[1])) == (1437, 360)
    assert train[0].dtype == np.uint8 and train[1].dtype == np.int32
    assert train[0].max() == test[0].max() == 16

    # together they are the data set, each image with its label
    key = lambda images, labels: sorted(zip(map(bytes, images), labels.tolist(), strict=True))  # noqa: E731
    both = [np.concatenate(pair) for pair in zip(train, test, strict=True)]
    assert key(*both) == key(digits.images.astype(np.uint8)[..., None], digits.target)

    # each class gives its fifth, to within one image, and the choice never changes
    share = np.bincount(test[1]) - np.bincount(digits.target) / 5
    assert abs(share).max() <= 1
    assert np.bincount(test[1]).tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]
    assert test[1][:12].tolist() == [0, 2, 9, 1, 0, 1, 8, 7, 2, 3, 6, 9]


def test_digits_in_another_shape():
    example = load("digits", "test", image_size=12, channels=3)[0]
    assert example["image"].shape == (12, 12, 3) and example["image"].max() <= 16


def keras_arrays(**changes) -> dict:
    arrays = {
        "x_train": RNG.integers(256, size=(12, 6, 5), dtype=np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": RNG.integers(256, size=(5, 6, 5), dtype=np.uint8),
        "y_test": np.arange(5) % 3,
    }
    return {name: array for name, array in (arrays | changes).items() if array is not None}


@pytest.fixture
def npz(tmp_path):
    def write(save=np.savez, **arrays) -> str:
        save(tmp_path / "data.npz", **arrays)
        return f"npz:{tmp_path / 'data.npz'}"

    return write


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_its_own_test_split(npz, save):
    arrays = keras_arrays()
    name = npz(save, **arrays)
    info = inspect(name)
    assert (info.image_size, info.channels, info.num_classes, info.max_value) == (5, 1, 3, 255)
    assert info.num_examples == {"train": 12, "test": 5} and info.class_names == ("0", "1", "2")
    source = load(name, "test", image_size=5, channels=1)
    images, labels = everything(pickle.loads(pickle.dumps(source)))
    assert images.shape == (5, 5, 5, 1) and labels.dtype == np.int32
    np.testing.assert_array_equal(labels, arrays["y_test"])


def test_npz_colour_images_with_a_column_of_labels(npz):
    """The form of Keras' CIFAR-10."""
    images = RNG.integers(256, size=(12, 4, 4, 3), dtype=np.uint8)
    name = npz(**keras_arrays(x_train=images, x_test=images[:5], y_train=np.arange(12)[:, None] % 3))
    assert inspect(name).channels == 3
    found, labels = everything(load(name, "train", image_size=4, channels=3))
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(labels, np.arange(12) % 3)


def test_npz_without_test_split_holds_out_a_fifth(npz):
    images = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((4, 4), np.uint8)
    names = np.array(["wolf", "bear"])[np.arange(40) % 2]
    name = npz(images=images, labels=names)
    info = inspect(name)
    assert info.class_names == ("bear", "wolf") and info.num_examples == {"train": 32, "test": 8}
    train, test = (everything(load(name, split, image_size=4, channels=1)) for split in ("train", "test"))
    assert np.bincount(test[1]).tolist() == [4, 4]
    number = np.concatenate([train[0], test[0]])[:, 0, 0, 0]
    assert sorted(number) == list(range(40))
    np.testing.assert_array_equal(np.concatenate([train[1], test[1]]), 1 - number % 2)


def test_npz_labels_need_not_start_at_zero(npz):
    name = npz(**keras_arrays(y_train=np.arange(12) % 3 * 5 - 5, y_test=np.array([5, 0, -5, 0, 0])))
    assert inspect(name).class_names == ("-5", "0", "5")
    assert everything(load(name, "test", image_size=5, channels=1))[1].tolist() == [2, 1, 0, 1, 1]


WRONG_ARRAYS = [
    (
        {"x_test": None},
        r"holds the arrays x_train, y_train, y_test; accepted: x_train, y_train, x_test, y_test, or",
    ),
    (
        {"x_train": np.zeros((12, 6, 5), np.float32)},
        r"x_train is float32 \[12, 6, 5\]; accepted: uint8 \(0 to 255\)",
    ),
    ({"x_train": np.zeros((12, 6, 5, 2), np.uint8)}, r"x_train is uint8 \[12, 6, 5, 2\]; accepted: uint8"),
    ({"x_train": np.zeros((12, 6), np.uint8)}, r"x_train is uint8 \[12, 6\]; accepted: uint8"),
    ({"x_test": np.zeros((0, 6, 5), np.uint8)}, r"x_test is uint8 \[0, 6, 5\]; accepted: uint8"),
    ({"x_test": np.zeros((5, 7, 5), np.uint8)}, r"x_train and x_test hold images of different shapes"),
    ({"y_train": np.arange(11)}, r"y_train is int64 \[11\]; accepted: integers or strings \[12\]"),
    ({"y_test": np.zeros(5)}, r"y_test is float64 \[5\]; accepted: integers or strings \[5\]"),
    (
        {"y_train": np.zeros((12, 3), int)},
        r"y_train is int64 \[12, 3\]; accepted: integers or strings \[12\]",
    ),
    (
        {"y_train": np.array([{}] * 12)},
        r"cannot be read as .npz without pickled objects \(Object arrays cannot",
    ),
    (
        {"y_train": np.ones(12, int), "y_test": np.ones(5, int)},
        r"holds labels of one class, 1; accepted: two or more",
    ),
    ({"y_test": np.array([0, 1, 7, 8, 0])}, r"labels in y_test but not in y_train: \[7, 8\]"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_ARRAYS)
def test_npz_with_wrong_arrays_is_refused(npz, change, message):
    name = npz(**keras_arrays(**change))
    with pytest.raises(InputError, match=message):
        inspect(name)
    assert refusal(name).startswith(name.removeprefix("npz:"))


def test_npz_with_too_few_images_is_refused(npz):
    name = npz(images=np.zeros((3, 4, 4), np.uint8), labels=np.arange(3))
    assert refusal(name).endswith("data.npz: 3 images in 3 classes are too few to hold out a fifth")


def test_a_missing_or_damaged_npz_is_refused(tmp_path, npz):
    assert refusal(f"npz:{tmp_path}/none.npz") == (
        f"file {tmp_path}/none.npz does not exist; accepted: npz:PATH of an .npz file"
    )
    path = tmp_path / "data.npz"
    content = io.BytesIO()
    np.save(content, np.zeros(3))
    npz(np.savez_compressed, **keras_arrays(x_train=RNG.integers(256, size=(12, 32, 32), dtype=np.uint8)))
    whole = path.read_bytes()
    for damaged in (b"", b"no archive", content.getvalue(), whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        assert refusal(f"npz:{path}").startswith(f"{path} cannot be read as .npz")


def test_damaged_content_is_found_when_loaded(tmp_path, npz):
    name = npz(**keras_arrays())
    with zipfile.ZipFile(tmp_path / "data.npz") as archive:
        offset = archive.getinfo("x_train.npy").header_offset + 300  # within the pixels
    content = bytearray((tmp_path / "data.npz").read_bytes())
    content[offset] ^= 1
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"data\.npz cannot be read as \.npz .*CRC"):
        load(name, "train", image_size=5, channels=1)


def test_letters_are_as_the_digits_in_shape():
    """26 classes of 60, a fifth held out of each, in 17 levels; the same at every call."""
    info = inspect("letters")
    assert (info.image_size, info.channels, info.num_classes, info.max_value) == (8, 1, 26, 16)
    assert info.num_examples == {"train": 1248, "test": 312}
    test = load("letters", "test", image_size=8, channels=1)
    images, labels = everything(test)
    assert np.bincount(labels).tolist() == [12] * 26
    assert images.max() <= 16 < images.reshape(312, -1).sum(1).min()
    np.testing.assert_array_equal(images, everything(load("letters", "test", image_size=8, channels=1))[0])
    # A letter is nearer to the mean of its own class in training than to any other's, mostly.
    train, classes = everything(load("letters", "train", image_size=8, channels=1))
    means = np.stack([train[classes == c].reshape(-1, 64).mean(0) for c in range(26)])
    nearest = np.argmin(((images.reshape(-1, 1, 64) - means) ** 2.0).sum(-1), 1)
    assert (nearest == labels).mean() > 0.6
