"""`crate_jax.probe`: a trained run, an untrained network, a released checkpoint, and mistakes."""

import json

import cv2
import numpy as np
import pytest
from conftest import ROOT, TINY, load_config

from crate_jax import InputError, convert, probe, weights
from crate_jax.analysis import features, linear_probe
from crate_jax.data import sources
from crate_jax.runs import cli
from crate_jax.train import train
from crate_jax.training.opening import open_run

FIXTURES = ROOT / "tests" / "fixtures"


@pytest.fixture(scope="module", autouse=True)
def short_sweep():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_probe, "STRENGTHS", (0.01, 0.1))
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained")
    train(load_config(TINY), path, sections="loss")
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes that the network was not trained on."""
    source = sources.load("digits", "test", image_size=8, channels=1)
    for name, digits in (("even", (0, 2)), ("odd", (1, 3))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(100):
            if source[i]["label"] in digits:
                cv2.imwrite(str(tmp_path / "data" / name / f"{i}.png"), source[i]["image"] * 15)
    return tmp_path / "data"


def read(workdir):
    return json.loads((workdir / "report" / "probe.json").read_text())["probes"]


def test_a_trained_run(workdir, capsys):
    probe.main(["probe", f"--workdir={workdir}"])
    probes = read(workdir)
    assert list(probes) == ["step-30", "untrained", "pixels"]
    assert [len(values["accuracy"]) for values in probes.values()] == [2, 2, 1]
    assert 0.93 < probes["pixels"]["accuracy"][0] < 0.97
    assert cv2.imread(str(workdir / "report" / "probe.png")) is not None
    assert "pixels" in capsys.readouterr().out


@pytest.mark.slow
def test_a_released_checkpoint_on_data_of_other_classes(workdir, folder, tmp_path):
    data = f"--config.data.name=folder:{folder}"
    _, config, _, overrides = cli.parse_workdir(["", f"--workdir={workdir}", data], cli.WorkdirFlags)
    run, params, _ = open_run(workdir, config=config, overrides=overrides, match_classes=False)
    np.savez(tmp_path / "released.npz", **weights.export(params, "crate"))
    out = tmp_path / "out"
    flags = ["--heads=2", "--config.data.mean=(0.5,)", "--config.data.std=(0.5,)"]
    convert.main(["convert", f"--input={tmp_path / 'released.npz'}", f"--output={out}", *flags])
    probe.main(["probe", f"--workdir={out}", data])
    assert list(read(out)) == ["step-0", "untrained", "pixels"]
    trained = features.extract(features.network(run, params, "trained"), "test")
    (released,) = (out / "features").glob("step-0-test-*/features-*.npy")
    np.testing.assert_allclose(np.load(released), trained.read(), rtol=1e-4, atol=1e-5)
    assert set(trained.labels) == {0, 1}


@pytest.mark.slow
def test_a_released_colour_model_with_its_palette(tmp_path):
    with np.load(FIXTURES / "imagegpt_hf.npz") as file:
        released = {n.removeprefix("param/"): file[n] for n in file.files if n.startswith("param/")}
    np.savez(tmp_path / "released.npz", **released)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "palette.npy", rng.uniform(-1, 1, (16, 3)).astype(np.float32))
    images, labels = rng.integers(0, 256, (60, 4, 4, 3), np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    flags = [f"--input={tmp_path / 'released.npz'}", "--heads=4", f"--palette={tmp_path / 'palette.npy'}"]
    convert.main(["convert", *flags, f"--output={tmp_path / 'run'}", "--config.batch_size=16"])
    probe.main(["probe", f"--workdir={tmp_path / 'run'}", f"--config.data.name=npz:{tmp_path / 'data.npz'}"])
    probes = json.loads((tmp_path / "run" / "report" / "probe.json").read_text())["probes"]
    assert {name: len(values["accuracy"]) for name, values in probes.items()} == {
        "step-0": 2,
        "untrained": 2,
        "pixels": 1,
    }


def test_the_untrained_network_needs_no_checkpoint(workdir, tmp_path):
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    probe.main(["probe", f"--workdir={tmp_path}", "--random"])
    assert list(read(tmp_path)) == ["untrained", "pixels"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--workdir is required"),
        (["--workdir=/nowhere"], "/nowhere holds no config.json"),
        (["--workdir={workdir}", "--config.model.dim=32"], "the model of a trained run cannot be changed"),
        (["--workdir={workdir}", "--config.data.name=folder:{empty}"], "holds no images in class folders"),
        (["--workdir={workdir}", "--checkpoint=x.npz"], "--checkpoint: found x.npz; accepted in"),
    ],
)
def test_mistakes(workdir, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        probe.main(["probe", *(flag.format(workdir=workdir, empty=tmp_path) for flag in flags)])
