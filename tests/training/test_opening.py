"""A run opens from its workdir alone: without its data, at any checkpoint that is kept."""

import dataclasses
import json
import shutil

import cv2
import jax
import numpy as np
import pytest
from conftest import TINY, load_config, metrics

from crate_jax import InputError, evaluate, probe, sample
from crate_jax.train import train
from crate_jax.training.opening import open_run

# Two steps; what is learned does not matter here.
SHORT = {
    **TINY,
    "total_steps": 2,
    "warmup_steps": 1,
    "batch_size": 8,
    "checkpoint_steps": 2,
    "data.image_size": 4,
}


def write_images(folder) -> str:
    """Sixty colour images in three class folders; the name of the dataset."""
    rng = np.random.default_rng(0)
    for i, image in enumerate(rng.integers(0, 256, (60, 4, 4, 3), np.uint8)):
        path = folder / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    return f"folder:{folder}"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier whose images were deleted; the workdir and the folder that held them."""
    path = tmp_path_factory.mktemp("classifier")
    train(load_config({**SHORT, "data.name": write_images(path / "images")}), path / "run", sections="loss")
    shutil.rmtree(path / "images")
    return path / "run", path / "images"


@pytest.fixture(scope="module")
def igpt(tmp_path_factory):
    """The same of an iGPT over a palette of 16 colours."""
    path = tmp_path_factory.mktemp("igpt")
    changes = {name: value for name, value in SHORT.items() if name != "model.head_dim"}
    changes |= {"model.vocab_size": 16, "data.name": write_images(path / "images")}
    train(load_config(changes, "configs/igpt.py"), path / "run", sections="loss")
    shutil.rmtree(path / "images")
    return path / "run", path / "images"


def test_an_igpt_draws_without_its_images(igpt, tmp_path):
    workdir, _ = igpt
    # As on another machine: a copy, under another name.
    copy = shutil.copytree(workdir, tmp_path / "copy")
    for path in (workdir, copy):
        sample.main(["sample", f"--workdir={path}", "--num=2", f"--output={tmp_path / path.name}.png"])
    drawn, copied = (np.load(tmp_path / f"{name}.npz")["tokens"] for name in (workdir.name, "copy"))
    assert drawn.shape == (2, 16)
    np.testing.assert_array_equal(drawn, copied)


@pytest.mark.parametrize(("command", "flags"), [(evaluate, []), (probe, []), (sample, ["--mode=complete"])])
def test_what_looks_at_images_says_which_are_missing(igpt, classifier, command, flags):
    for workdir, images in (igpt,) if command is sample else (igpt, classifier):
        with pytest.raises(InputError) as error:
            command.main([command.__name__, f"--workdir={workdir}", *flags])
        message = str(error.value)
        assert f"folder {images} does not exist" in message and str(workdir) in message
        assert "--config.data.name=" in message and "\n" not in message


def test_images_that_moved_are_found_again(classifier, tmp_path):
    workdir, _ = classifier
    evaluate.main(["evaluate", f"--workdir={workdir}", f"--config.data.name={write_images(tmp_path)}"])
    report = json.loads((workdir / "report" / "evaluate.json").read_text())
    assert report["eval/accuracy"] == metrics(workdir)[-1]["eval/accuracy"]
    assert report["eval/count"] == 12


def test_the_model_is_the_one_of_the_configuration(classifier):
    run, params, step = open_run(classifier[0])
    assert step == 2 and run.model.config == run.config.model
    larger = dataclasses.replace(run.config.model, image_size=8)
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, model=larger))
    assert other.model.config == larger
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, run.model.abstract_params)


def test_how_a_model_is_computed_may_change(classifier):
    workdir, _ = classifier
    trained = open_run(workdir).run.config
    for name, value in (("remat", "full"), ("scan", not trained.model.scan)):
        config = dataclasses.replace(trained, model=dataclasses.replace(trained.model, **{name: value}))
        run, params, _ = open_run(workdir, config=config, overrides={f"model.{name}"})
        assert getattr(run.model.config, name) == value
        assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, run.model.abstract_params)
    with pytest.raises(
        InputError, match=r"--config\.model\.dim: the model of a trained run cannot be changed"
    ):
        open_run(workdir, config=trained, overrides={"model.scan", "model.dim"})


@pytest.fixture(scope="module")
def worse(tmp_path_factory):
    """A run that is best at step 20, and then spoiled."""
    path = tmp_path_factory.mktemp("worse")
    lengths = {"total_steps": 20, "checkpoint_steps": 20, "eval_steps": 20}
    train(load_config({**TINY, **lengths, "optimizer.lr": 0.003}), path, sections="loss")
    train(load_config({**TINY, **lengths, "total_steps": 40, "optimizer.lr": 0.5}), path, sections="loss")
    return path


def test_any_checkpoint_that_is_kept_can_be_evaluated(worse):
    at = {line["step"]: line for line in metrics(worse) if "eval/loss" in line}
    assert at[20]["eval/accuracy"] > at[40]["eval/accuracy"]
    for which, step in (("best", 20), ("20", 20), ("latest", 40), ("40", 40)):
        evaluate.main(["evaluate", f"--workdir={worse}", f"--checkpoint={which}"])
        report = json.loads((worse / "report" / "evaluate.json").read_text())
        assert report["step"] == step
        assert report["eval/loss"] == at[step]["eval/loss"]


@pytest.mark.parametrize("command", [evaluate, probe])
def test_a_checkpoint_that_is_not_kept_is_refused(worse, command):
    with pytest.raises(InputError, match=r"--checkpoint: found 30; accepted .*: latest, best, 20, 40"):
        command.main([command.__name__, f"--workdir={worse}", "--checkpoint=30"])
