"""`crate_jax.evaluate`: a trained run on its own test split and on other data."""

import dataclasses
import json

import cv2
import jax
import numpy as np
import pytest
from conftest import TINY, command, load_config, run

from crate_jax import InputError, evaluate, models
from crate_jax.data import sources
from crate_jax.train import train
from crate_jax.training.opening import open_run
from crate_jax.training.run_data import label_map


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    return workdir, train(load_config({**TINY, "ema_decay": 0.5}), workdir, sections="loss")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits 3 and 7 as PNG files: a part of the classes, in another order of labels."""
    root = tmp_path_factory.mktemp("folder")
    source = sources.load("digits", "test", image_size=8, channels=1)
    for split in ("train", "test"):
        for name in ("3", "7"):
            (root / split / name).mkdir(parents=True)
    for i in range(len(source)):
        label = str(source[i]["label"])
        if label in ("3", "7"):
            for split in ("train", "test"):
                cv2.imwrite(str(root / split / label / f"{i}.png"), source[i]["image"] * 15)
    return root


def test_evaluation_repeats_the_final_line(trained):
    workdir, values = trained
    evaluate.main(["evaluate", f"--workdir={workdir}"])
    report = json.loads((workdir / "report" / "evaluate.json").read_text())
    assert report["step"] == 30
    for name in ("eval/accuracy", "eval/loss", "eval/top5", "eval/count"):
        assert report[name] == values[name]
    assert len(report["layers"]["coding_rate"]["mean"]) == 2


@pytest.mark.slow
def test_another_resolution_interpolates_the_positions(trained):
    """16×16 images are 4×4 patches where the model was trained with 2×2; it also evaluates wide ones."""
    workdir, values = trained
    for flags in (["--config.data.image_size=16"], ["--config.data.image_width=12"]):
        evaluate.main(["evaluate", f"--workdir={workdir}", *flags])
        report = json.loads((workdir / "report" / "evaluate.json").read_text())
        assert report["eval/count"] == values["eval/count"]
    with pytest.raises(InputError, match=r"4 does not divide data.image_size 10 px"):
        evaluate.main(["evaluate", f"--workdir={workdir}", "--config.data.image_size=10"])


@pytest.mark.slow
def test_fine_tuning_starts_at_another_resolution(trained, tmp_path):
    """At a learning rate of zero the parameters are those of the other run, its positions interpolated."""
    workdir, _ = trained
    changes = {"data.image_size": 16, "model.patch_size": 4, "init_from": str(workdir), "optimizer.lr": 0.0}
    lengths = {"total_steps": 2, "eval_steps": 2, "checkpoint_steps": 2, "trace_steps": 2}
    train(
        load_config({**TINY, **changes, **lengths}),
        tmp_path,
        {"data.image_size", "model.patch_size"},
        sections="loss",
    )
    (before, old, _), (after, new, _) = (open_run(path) for path in (workdir, tmp_path))
    assert (before.model.config.grid, after.model.config.grid) == ((2, 2), (4, 4))
    expected = models.resize_positions(old.pop("position_embedding"), (2, 2), (4, 4))
    np.testing.assert_array_equal(new.pop("position_embedding"), expected)
    jax.tree.map(np.testing.assert_array_equal, new, old)


def test_other_data_are_matched_by_class_name(trained, folder):
    workdir, _ = trained
    evaluate.main(["evaluate", f"--workdir={workdir}", f"--config.data.name=folder:{folder}"])
    report = json.loads((workdir / "report" / "evaluate.json").read_text())
    assert report["eval/count"] == len(list(folder.glob("test/*/*.png")))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--workdir is required"),
        (["--workdir=/nowhere"], "/nowhere holds no config.json"),
        (["--workdir={workdir}", "--config.model.dim=32"], "the model of a trained run cannot be changed"),
        (
            ["--workdir={workdir}", "--config.data.nam=digits"],
            "unknown key data.nam; did you mean data.name?",
        ),
    ],
)
def test_mistakes(trained, flags, message):
    with pytest.raises(InputError, match=message):
        evaluate.main(["evaluate", *(flag.format(workdir=trained[0]) for flag in flags)])


def test_unknown_classes_are_named(trained, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(10):
            cv2.imwrite(
                str(tmp_path / name / f"{i}.png"),
                sources.load("digits", "test", image_size=8, channels=1)[i]["image"],
            )
    with pytest.raises(InputError, match="classes cat, dog are not among those the model was trained on"):
        evaluate.main(["evaluate", f"--workdir={trained[0]}", f"--config.data.name=folder:{tmp_path}"])


def test_classes_called_by_number_are_those_numbers():
    """ImageNet-V2's folders; the order in which they are listed does not matter."""
    info = dataclasses.replace(sources.inspect("digits"), class_names=("0", "2", "11", "1"))
    known = tuple(f"n{i:08}" for i in range(12))
    assert label_map(info, known).tolist() == [0, 2, 11, 1]
    with pytest.raises(InputError, match="classes 0, 2, 11, 1 are not among"):
        label_map(info, known[:11])
    digits = sources.inspect("digits").class_names
    assert label_map(dataclasses.replace(info, class_names=("7", "3")), digits).tolist() == [7, 3]


def test_real_labels_count_any_class_of_an_image_and_skip_images_without(trained, tmp_path):
    workdir, _ = trained
    source = sources.load("digits", "test", image_size=8, channels=1)
    for number in range(1, 101):
        example = source[number - 1]
        for split in ("train", "val"):
            path = tmp_path / "data" / split / str(example["label"]) / f"ILSVRC2012_val_{number:08}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), example["image"])

    def real_accuracy(lists) -> tuple[float, float]:
        (tmp_path / "real.json").write_text(json.dumps(lists))
        flags = [f"--workdir={workdir}", f"--config.data.name=folder:{tmp_path / 'data'}"]
        evaluate.main(["evaluate", *flags, f"--real_labels={tmp_path / 'real.json'}"])
        report = json.loads((workdir / "report" / "evaluate.json").read_text())
        assert report["eval/count"] == 100
        return report["eval/accuracy"], report["eval/real_accuracy"], report["eval/real_count"]

    labels = [int(source[i]["label"]) for i in range(100)]
    plain, accuracy, count = real_accuracy([[label] for label in labels])
    assert accuracy == pytest.approx(plain) and count == 100
    assert real_accuracy([list(range(10))] * 60 + [[]] * 40)[1:] == (1.0, 60)
    with pytest.raises(InputError, match="is none of the 99 images"):
        real_accuracy([[label] for label in labels[:99]])
    with pytest.raises(InputError, match=r"real\.json cannot be read .*; accepted: real\.json, a list"):
        real_accuracy([1, 2])
    (tmp_path / "real.json").write_text("[[1]]")
    with pytest.raises(InputError, match="an array is none of"):
        evaluate.main(["evaluate", f"--workdir={workdir}", f"--real_labels={tmp_path / 'real.json'}"])


@pytest.mark.slow
def test_any_number_of_devices_counts_every_example_once(trained):
    """360 examples in batches of 32: eleven whole ones and a padded one."""
    workdir, values = trained
    for devices in (1, 4):
        done = run(command("evaluate", f"--workdir={workdir}"), devices=devices)
        assert done.returncode == 0, done.stderr
        report = json.loads((workdir / "report" / "evaluate.json").read_text())
        assert report["eval/count"] == 360
        assert report["eval/accuracy"] == values["eval/accuracy"]
        np.testing.assert_allclose(report["eval/loss"], values["eval/loss"], rtol=1e-5)
