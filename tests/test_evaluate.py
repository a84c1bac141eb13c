"""`crate_jax.evaluate`: a trained run on its own test split and on other data."""

import json

import cv2
import pytest
from conftest import TINY, load_config

from crate_jax import InputError, evaluate
from crate_jax.data import sources
from crate_jax.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    return workdir, train(load_config({**TINY, "ema_decay": 0.5}), workdir)


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
