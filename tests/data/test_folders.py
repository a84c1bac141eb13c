"""Class folders of image files."""

import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from crate_jax import InputError
from crate_jax.data import folders, inspect, load, train


def write(path: Path, value: int = 0, shape: tuple[int, ...] = (28, 28)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full(shape, value, np.uint8))


def fill(path: Path, classes: dict[str, int], **options) -> None:
    """Writes ``classes[name]`` images into each class folder, their value telling class and number."""
    for c, (name, count) in enumerate(classes.items()):
        for i in range(count):
            write(path / name / f"{i:03}.png", 20 * c + i, **options)


def refusal(path: Path, **options) -> str:
    with pytest.raises(InputError) as error:
        inspect(f"folder:{path}", **options)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def values(source) -> list[int]:
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_folder_with_its_own_test_split(tmp_path, held_out):
    fill(tmp_path / "train", {"a": 3, "b": 2})
    fill(tmp_path / held_out, {"a": 1, "b": 2})
    info = inspect(f"folder:{tmp_path}")
    assert (info.image_size, info.channels, info.num_classes, info.max_value) == (28, 1, 2, 255)
    assert info.class_names == ("a", "b") and info.num_examples == {"train": 5, "test": 3}
    source = load(f"folder:{tmp_path}", "train", image_size=28, channels=1)
    source = pickle.loads(pickle.dumps(source))
    assert values(source) == [0, 1, 2, 20, 21]
    assert [source[i]["label"] for i in range(5)] == [0, 0, 0, 1, 1]
    assert source[0]["image"].dtype == np.uint8 and source[0]["label"].dtype == np.int32
    assert values(load(f"folder:{tmp_path}", "test", image_size=28, channels=1)) == [0, 20, 21]


def test_test_goes_before_val_unless_it_has_no_classes(tmp_path):
    fill(tmp_path / "train", {"a": 3, "b": 2})
    fill(tmp_path / "val", {"a": 4, "b": 4})
    write(tmp_path / "test" / "unlabelled.png")
    assert inspect(f"folder:{tmp_path}").num_examples["test"] == 8
    fill(tmp_path / "test", {"a": 1, "b": 1})
    assert inspect(f"folder:{tmp_path}").num_examples["test"] == 2


def test_the_test_split_may_lack_a_class(tmp_path):
    fill(tmp_path / "train", {"a": 3, "b": 2, "c": 2})
    fill(tmp_path / "test", {"c": 2})
    test = load(f"folder:{tmp_path}", "test", image_size=28, channels=1)
    assert [test[i]["label"] for i in range(2)] == [2, 2]


def test_class_folders_alone_hold_out_a_fifth(tmp_path):
    fill(tmp_path, {"a": 20, "b": 10})
    splits = {s: load(f"folder:{tmp_path}", s, image_size=28, channels=1) for s in ("train", "test")}
    labels = [splits["test"][i]["label"] for i in range(len(splits["test"]))]
    assert np.bincount(labels).tolist() == [4, 2] and len(splits["train"]) == 24
    assert sorted(values(splits["train"]) + values(splits["test"])) == [*range(20), *range(20, 30)]
    assert values(load(f"folder:{tmp_path}", "test", image_size=28, channels=1)) == values(splits["test"])


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, {"train": 10, "plane": 10})
    assert inspect(f"folder:{tmp_path}").class_names == ("plane", "train")


def test_classes_are_in_natural_order(tmp_path):
    fill(tmp_path, {str(name): 2 for name in (10, 9, 1, "x10y2", "x9", "x10y1")})
    assert inspect(f"folder:{tmp_path}").class_names == ("1", "9", "10", "x9", "x10y1", "x10y2")


def test_whatever_is_not_data_is_ignored(tmp_path):
    fill(tmp_path, {"a": 5, "b": 5})
    expected = inspect(f"folder:{tmp_path}").num_examples
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / ".DS_Store").write_text("x")
    (tmp_path / "README.md").write_text("x")
    write(tmp_path / "cover.png")
    write(tmp_path / "a" / "._000.png")
    write(tmp_path / "a" / "deeper" / "x.png")
    write(tmp_path / ".thumbnails" / "x.png")
    (tmp_path / "a" / "folder.png").mkdir()
    (tmp_path / "empty").mkdir()
    write(tmp_path / "runs" / "base" / "report" / "layerwise.png")
    info = inspect(f"folder:{tmp_path}")
    assert info.num_examples == expected and info.class_names == ("a", "b")


@pytest.mark.parametrize("as_given", [str, os.path.relpath])
def test_a_run_inside_the_folder_is_ignored(tmp_path, as_given):
    fill(tmp_path, {"a": 5, "b": 5})
    write(tmp_path / "run" / "layerwise.png")
    assert len(inspect(f"folder:{tmp_path}").class_names) == 3
    assert inspect(f"folder:{tmp_path}", exclude=as_given(tmp_path / "run")).class_names == ("a", "b")
    source = load(
        f"folder:{tmp_path}", "train", image_size=28, channels=1, exclude=as_given(tmp_path / "run")
    )
    assert len(source) == 8
    for outside in (tmp_path.parent, tmp_path.parent / "elsewhere"):
        assert len(inspect(f"folder:{tmp_path}", exclude=str(outside)).class_names) == 3
    assert refusal(tmp_path, exclude=str(tmp_path)).endswith("accepted: one elsewhere or inside it")


def test_mixed_images_are_described_by_their_median_and_converted(tmp_path):
    for i, shape in enumerate([(20, 40), (60, 30), (50, 50, 3), (90, 31)]):
        write(tmp_path / "a" / f"{i}.jpg", 9, shape)
        write(tmp_path / "b" / f"{i}.JPEG", 9, shape)
    info = inspect(f"folder:{tmp_path}")
    assert info.channels == 3 and info.image_size in (30, 31)
    for channels in (1, 3):
        source = load(f"folder:{tmp_path}", "train", image_size=24, channels=channels)
        batch = train(source, batch_size=len(source), seed=0).batch(0)
        assert batch["image"].shape == (len(source), 24, 24, channels)
        assert abs(batch["image"].astype(int) - 9).max() <= 2


def test_an_unreadable_image_is_named_when_it_is_decoded(tmp_path):
    fill(tmp_path / "train", {"a": 3, "b": 3})
    fill(tmp_path / "test", {"a": 3, "b": 3})
    broken = tmp_path / "test" / "b" / "001.png"
    for content in (b"", b"not an image", broken.read_bytes()[:30]):
        broken.write_bytes(content)
        source = load(f"folder:{tmp_path}", "test", image_size=28, channels=1)
        assert source[3]["label"] == 1
        with pytest.raises(InputError) as error:
            source[4]
        assert str(error.value).startswith(f"{broken}: unreadable image ({len(content)} bytes); accepted: ")
    broken.unlink()
    with pytest.raises(InputError, match=r"001\.png: unreadable image \(No such file"):
        source[4]


def test_an_unreadable_image_surfaces_from_the_prefetching_threads(tmp_path):
    fill(tmp_path, {"a": 10, "b": 10})
    source = load(f"folder:{tmp_path}", "train", image_size=28, channels=1)
    Path(source.source.paths[5]).write_bytes(b"")
    with pytest.raises(InputError) as error:
        for _ in train(source, batch_size=4, seed=0, num_threads=2).iterate(0):
            pass
    assert str(error.value).startswith(f"{source.source.paths[5]}: unreadable image (0 bytes)")


def test_a_missing_folder_is_refused(tmp_path):
    assert refusal(tmp_path / "none").startswith(
        f"folder {tmp_path}/none does not exist; accepted: train/CLASS/*"
    )


def test_a_folder_without_two_classes_is_refused(tmp_path):
    nothing = f"folder {tmp_path} holds no images in class folders; accepted: train/CLASS/*"
    assert refusal(tmp_path).startswith(nothing)
    write(tmp_path / "x.png")
    assert refusal(tmp_path).startswith(nothing)
    fill(tmp_path, {"a": 3})
    assert refusal(tmp_path).startswith(f"folder {tmp_path} holds images of one class, a/; accepted")
    fill(tmp_path / "few", {"a": 1, "b": 1})
    assert (
        refusal(tmp_path / "few")
        == f"folder {tmp_path}/few: 2 images in 2 classes are too few to hold out a fifth"
    )


def test_incomplete_splits_are_refused(tmp_path):
    fill(tmp_path / "train", {"a": 3, "b": 3})
    assert refusal(tmp_path).endswith(
        f"accepted: one of them, or folder:{tmp_path}/train to hold out a fifth"
    )
    (tmp_path / "test" / "a").mkdir(parents=True)
    assert refusal(tmp_path).startswith(f"folder {tmp_path} holds no test images; accepted")
    fill(tmp_path / "test", {"a": 1, "c": 1, "d": 1})
    assert refusal(tmp_path) == f"folder {tmp_path}: classes in the test split but not in train: c, d"


def test_images_of_any_folder(tmp_path):
    """Those in its folders too; nothing that merely has the name of one."""
    for name in ("1.png", "more/2.png", "more/._2.png", ".thumbnails/1.png"):
        write(tmp_path / name)
    (tmp_path / "x.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert len(folders.unlabelled(tmp_path)) == 2
    (tmp_path / "3.png").symlink_to("/not/mounted/3.png")
    with pytest.raises(InputError, match=r"1 image files are links to what is not there, such as .*/3\.png"):
        folders.unlabelled(tmp_path)
