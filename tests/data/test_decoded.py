"""Images decoded into a .npz file: the batches of what it was made from, and what is refused."""

import cv2
import numpy as np
import pytest

from crate_jax import InputError, prepare
from crate_jax.data import decoded, inspect, load, pipeline
from crate_jax.data.augmentation import Augment

# In this order, which is not that of the alphabet; one name is of three letters beyond ASCII.
CLASSES = ("class2", "class10", "αβγ")


def write_image(path, seed, shape=(8, 8), channels=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(*shape, channels), dtype=np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


@pytest.fixture
def folder(tmp_path):
    """Twelve images to train on, one of them grey, and six to test on."""
    for i in range(12):
        name = CLASSES[i % 3]
        write_image(tmp_path / "images" / "train" / name / f"{i:02}.jpg", i, channels=1 if i == 4 else 3)
    for i in range(6):
        write_image(tmp_path / "images" / "val" / CLASSES[i % 3] / f"{i}.png", 100 + i)
    return tmp_path / "images"


def batches(name: str) -> list[dict]:
    """Three training batches, which go into a second epoch, and the test images."""
    augment = Augment(size=8, channels=3, flip=True, crop_padding=2)
    train = pipeline.train(load(name, "train"), batch_size=5, seed=3, augment=augment)
    test = pipeline.evaluation(load(name, "test", image_size=8, channels=3), batch_size=6, num_threads=1)
    return [*(train.batch(step) for step in range(3)), *test]


def test_batches_are_those_of_the_files(folder, tmp_path):
    prepare.main(["prepare", f"--input=folder:{folder}", f"--output={tmp_path / 'new' / 'images.npz'}"])
    name = f"npz:{tmp_path / 'new' / 'images.npz'}"
    assert inspect(name).class_names == inspect(f"folder:{folder}").class_names == CLASSES
    for found, expected in zip(batches(name), batches(f"folder:{folder}"), strict=True):
        assert found.keys() == expected.keys()
        for key in found:
            np.testing.assert_array_equal(found[key], expected[key], err_msg=key)


def test_images_of_two_sizes_are_refused_and_nothing_is_written(folder, tmp_path):
    write_image(folder / "val" / "class10" / "wide.png", 7, (8, 9))
    with pytest.raises(
        InputError, match=r"^--output: one\.npz takes images of one size; found 8×8 and 8×9 pix"
    ):
        decoded.write(f"folder:{folder}", tmp_path / "one.npz")
    assert not (tmp_path / "one.npz").exists()


def test_an_unreadable_image_is_left_out_or_stops(folder, tmp_path):
    (folder / "train" / "class2" / "00.jpg").write_bytes(b"no image")
    done = decoded.write(f"folder:{folder}", tmp_path / "some.npz")
    assert done["train"][0] == 11 and "00.jpg: unreadable image" in done["train"][1][0]
    assert done["test"] == (6, [])
    assert inspect(f"npz:{tmp_path / 'some.npz'}").num_examples == {"train": 11, "test": 6}
    with pytest.raises(InputError, match=r"00\.jpg: unreadable image"):
        decoded.write(f"folder:{folder}", tmp_path / "none.npz", stop_at_unreadable=True)


def test_flags_of_records_are_refused(folder, tmp_path):
    flags = ["prepare", f"--input=folder:{folder}", f"--output={tmp_path / 'a.npz'}", "--processes=2"]
    with pytest.raises(
        InputError, match=r"^--processes: has no effect on a\.npz; accepted: --output of a fold"
    ):
        prepare.main(flags)


@pytest.mark.parametrize(
    "classes",
    [["a", "b"], ["a", "b", "b"], [["a", "b", "c"]], [1, 2, 3]],
    ids=["too few", "one twice", "a table", "numbers"],
)
def test_classes_that_are_not_names_of_the_labels_are_refused(tmp_path, classes):
    arrays = {"images": np.zeros((15, 4, 4), np.uint8), "labels": np.arange(15) % 3}
    np.savez(tmp_path / "wrong.npz", classes=np.array(classes), **arrays)
    with pytest.raises(
        InputError, match=r"wrong\.npz: classes is .* accepted: different names, whose places"
    ):
        inspect(f"npz:{tmp_path / 'wrong.npz'}")
