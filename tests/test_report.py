"""The report command: all sections again from a run's folder, wherever it lies and whether its data do."""

import json
import shutil

import cv2
import numpy as np
import pytest
from conftest import load_config

from crate_jax import InputError, report
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
    train(load_config({**TINY, "data.name": f"folder:{root / 'data'}"}), root / "run")
    return root


def test_it_is_made_again_as_it_was(trained, tmp_path, capsys):
    shutil.copytree(trained / "run", tmp_path / "run")
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


def test_without_its_data_it_keeps_what_it_has(trained, tmp_path, capsys):
    shutil.copytree(trained / "run", tmp_path / "run")
    (trained / "data").rename(trained / "gone")
    try:
        assert report.main(["report", f"--workdir={tmp_path / 'run'}"]) is None
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("report:")]
        assert len(lines) == 1 and lines[0].startswith("report: layerwise cannot be made: ")
        assert str(trained / "data") in lines[0] and "--config.data.name=" in lines[0]
        page = (tmp_path / "run" / "report" / "index.html").read_text()
        assert "From an earlier report of this step" in page
        pictures = [path for path in (tmp_path / "run" / "report").iterdir() if path.suffix == ".svg"]
        assert page.count("<img ") == len(pictures) > 10
        # Where the data are now.
        elsewhere = f"--config.data.name=folder:{trained / 'gone'}"
        assert report.main(["report", f"--workdir={tmp_path / 'run'}", elsewhere]) is None
        assert "earlier report" not in (tmp_path / "run" / "report" / "index.html").read_text()
    finally:
        (trained / "gone").rename(trained / "data")


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
