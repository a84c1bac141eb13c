"""The report command: all sections again from a run's folder, wherever it lies and whether its data do."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
from conftest import load_config

from crate_jax import InputError, report
from crate_jax.reports import comparison
from crate_jax.train import train

TINY = {
    "model.patch_size": 4,
    "model.dim": 8,
    "model.depth": 2,
    "model.heads": 2,
    "model.head_dim": 4,
    "batch_size": 8,
    "total_steps": 3,
    "eval_steps": 3,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A classifier of two classes of a folder, beside its images."""
    root = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    for label in "ab":
        for number in range(10):
            path = root / "data" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 256, (8, 8, 3), np.uint8))
    train(load_config({**TINY, "data.name": f"folder:{root / 'data'}"}), root / "run", sections="loss")
    return root


@pytest.fixture(scope="module")
def reported(trained, tmp_path_factory):
    """Its run again, with the whole report."""
    path = tmp_path_factory.mktemp("reported") / "run"
    train(load_config({**TINY, "data.name": f"folder:{trained / 'data'}"}), path)
    return path


@pytest.mark.slow
def test_it_is_made_again_as_it_was(reported, tmp_path, capsys):
    shutil.copytree(reported, tmp_path / "run")
    folder = tmp_path / "run" / "report"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    assert report.main(["report", f"--workdir={tmp_path / 'run'}"]) is None
    assert {path.name for path in folder.iterdir()} == set(before)
    old, new = json.loads(before["layerwise.json"]), json.loads((folder / "layerwise.json").read_text())
    for when in ("initial", "trained"):
        for name, values in old[when].items():
            np.testing.assert_allclose(new[when][name]["mean"], values["mean"], rtol=1e-5)
    assert (folder / "loss.svg").read_bytes() == before["loss.svg"]
    assert "index.html" in capsys.readouterr().out


@pytest.mark.slow
def test_without_its_data_it_keeps_what_it_has(trained, reported, tmp_path, capsys):
    shutil.copytree(reported, tmp_path / "run")
    (trained / "data").rename(trained / "gone")
    try:
        assert report.main(["report", f"--workdir={tmp_path / 'run'}"]) is None
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("report:")]
        names = ("layerwise", "attention", "segmentation", "subspaces", "atoms")
        for name, line in zip(names, lines, strict=True):
            assert line.startswith(f"report: {name} cannot be made: ")
            assert str(trained / "data") in line and "--config.data.name=" in line
        page = (tmp_path / "run" / "report" / "index.html").read_text()
        assert "From an earlier report of this step" in page
        pictures = [
            path for path in (tmp_path / "run" / "report").iterdir() if path.suffix in (".svg", ".png")
        ]
        assert page.count("<img ") == len(pictures) > 10
        # Where the data are now.
        elsewhere = f"--config.data.name=folder:{trained / 'gone'}"
        assert report.main(["report", f"--workdir={tmp_path / 'run'}", elsewhere]) is None
        assert "earlier report" not in (tmp_path / "run" / "report" / "index.html").read_text()
    finally:
        (trained / "gone").rename(trained / "data")


@pytest.mark.slow
def test_a_section_that_fails_is_told_by_the_exit_code(trained, tmp_path, monkeypatch):
    from crate_jax.reports import SECTIONS, Section

    def fail(opened):
        raise RuntimeError("no")

    monkeypatch.setitem(SECTIONS, "loss", Section(fail))
    shutil.copytree(trained / "run", tmp_path / "run")
    assert report.main(["report", f"--workdir={tmp_path / 'run'}"]) == 1
    # A run that trains ends well all the same.
    config = load_config({**TINY, "data.name": f"folder:{trained / 'data'}"})
    assert train(config, tmp_path / "new")["eval/count"] == 4


def test_a_folder_without_a_run_is_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"holds no config\.json"):
        report.main(["report", f"--workdir={tmp_path}"])


@pytest.mark.slow
def test_other_images_of_any_size(trained, tmp_path, capsys):
    """A folder without classes, of images larger than those the model knows; its training data are not looked at."""
    shutil.copytree(trained / "run", tmp_path / "run")
    rng = np.random.default_rng(1)
    for place, shape in (("a.png", (20, 31, 3)), ("more/b.png", (9, 8, 3)), ("more/c.png", (8, 8))):
        (tmp_path / "photos" / place).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "photos" / place), rng.integers(0, 256, shape, np.uint8))
    flags = [f"--workdir={tmp_path / 'run'}", f"--input={tmp_path / 'photos'}", "--sections=loss,layerwise"]
    assert report.main(["report", *flags]) is None
    values = json.loads((tmp_path / "run" / "report" / "layerwise.json").read_text())
    assert values["count"] == 3 and "photos" in values["examples"] and "training_examples" not in values
    assert "images of" in (tmp_path / "run" / "report" / "index.html").read_text()
    made = json.loads((tmp_path / "run" / "report" / "report.json").read_text())["run"]
    assert made["evaluation"]["count"] == 4  # Still the run's own.


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--input={0}/nothing"], "no file or folder .*nothing; accepted: an image, or a folder of images"),
        (["--input={0}"], "holds no images; accepted: .jpg"),
        (["--workdir={0}/run"], "--workdir: found the same run twice; accepted: different ones"),
        (["--output={0}/page.html"], "--output: found one --workdir; accepted with two or more"),
        (["--workdir={0}"], r"holds no config\.json"),
        (["--checkpoint=77"], "77"),
        (["--sections=layers"], "--sections: .*'layers'"),
        (["--config.model.heads=0"], "config.model.heads|model.heads"),
        (["--config.data.image_size=10"], "4 does not divide data.image_size 10 px"),
    ],
)
def test_mistakes_are_one_line(trained, tmp_path, flags, words):
    (tmp_path / "run").symlink_to(trained / "run")
    flags = [flag.format(tmp_path) for flag in flags]
    with pytest.raises(InputError, match=words) as found:
        report.main(["report", f"--workdir={tmp_path / 'run'}", *flags])
    assert "\n" not in str(found.value)


@pytest.mark.slow
def test_several_runs_side_by_side(reported, tmp_path):
    """One page with both runs' sections, what they reached, how they differ, and their curves in one picture."""
    for name in ("first", "second"):
        shutil.copytree(reported, tmp_path / name)
    for file in ("report.json",):
        path = tmp_path / "second" / "report" / file
        values = json.loads(path.read_text())
        values["run"]["config"]["optimizer"]["lr"] = 0.125
        values["sections"] = [each for each in values["sections"] if each["name"] != "loss"]
        path.write_text(json.dumps(values))
    comparison.write([tmp_path / "first", tmp_path / "second"], tmp_path / "out" / "both.html")
    text = (tmp_path / "out" / "both.html").read_text(encoding="utf-8")
    assert text.count("Does not apply to this run.") == 1  # The loss of the second.
    assert text.count(">optimizer.lr</th>") == 1 and "0.125" in text
    numbers = json.loads(re.search(r'id="numbers">(.*?)</script>', text, re.DOTALL)[1])
    assert set(numbers) == {"first", "second"}
    assert numbers["second"]["sections"]["layerwise"]["count"] == 4
    assert "MSSA&#39;s change of Rᶜ: paper, ε² = 0.5, by layer; in the last layer: first" in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)


def test_runs_are_called_by_what_tells_them_apart(tmp_path):
    assert comparison.names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert comparison.names([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
