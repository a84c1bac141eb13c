"""Folders of runs of which a part is gone, and data that changed between two starts: refused, or said, in one line."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import TINY, load_config

from crate_jax import InputError
from crate_jax.data.sources import DatasetInfo
from crate_jax.runs import cli
from crate_jax.runs import workdir as workdirs
from crate_jax.runs.metrics import write_if_possible
from crate_jax.training import starting
from crate_jax.training.starting import start_run

INFO = DatasetInfo("d", 8, 1, 3, ("a", "b", "c"), 255, {"train": 24, "test": 12})


@pytest.fixture
def config():
    return load_config(TINY)


@pytest.fixture
def folder(tmp_path, config):
    """A run with a checkpoint and a line of metrics."""
    workdirs.write(tmp_path, config, INFO)
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 10}) + "\n")
    assert workdirs.check(tmp_path, config, INFO) == []
    return tmp_path


def test_checkpoints_that_are_gone(folder, config):
    (folder / "checkpoints" / "10").rmdir()
    assert workdirs.check(folder, config, INFO) == []  # Killed before its first save.
    (folder / "checkpoints").rmdir()
    with pytest.raises(InputError, match="holds the metrics of a run but no checkpoints"):
        workdirs.check(folder, config, INFO)


def test_a_configuration_that_is_gone(folder, config):
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds checkpoints but no config\.json"):
        workdirs.check(folder, config, INFO)


def test_a_description_of_the_data_that_is_gone(folder, config):
    (folder / "dataset.json").unlink()
    with pytest.raises(
        InputError, match=r"holds checkpoints but no dataset\.json, which says what its labels mean"
    ):
        workdirs.check(folder, config, INFO)


def test_metrics_that_are_gone(folder, config):
    (folder / "metrics.jsonl").unlink()
    assert workdirs.check(folder, config, INFO) == [
        "metrics.jsonl is gone; it starts again where the run goes on"
    ]


def flip(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", workdirs.DESCRIPTIONS)
def test_a_description_that_was_edited_or_damaged_is_said(folder, config, name):
    assert workdirs.damage(folder) == []
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace("1", "7", 1))
    assert workdirs.damage(folder) == [f"{name} is not as it was written: edited by hand, or damaged"]
    workdirs.write(folder, config, INFO)  # The next start knows what it writes.
    assert workdirs.check(folder, config, INFO) == []


@pytest.mark.parametrize("name", [workdirs.PALETTE, workdirs.PARAMS])
def test_a_damaged_palette_or_parameters_are_refused(folder, config, name):
    np.save(folder / workdirs.PALETTE, np.zeros((4, 3), np.float32))
    (folder / workdirs.PARAMS).write_bytes(bytes(range(64)))
    workdirs.write_sums(folder)
    assert workdirs.damage(folder) == []
    flip(folder / name)
    with pytest.raises(InputError, match=f"{name} is damaged"):
        workdirs.check(folder, config, INFO)


def test_a_damaged_list_of_checksums_is_refused(folder):
    (folder / "checksums.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"checksums\.txt is not what was written; restore it, or remove it"):
        workdirs.damage(folder)
    (folder / "checksums.txt").unlink()  # As in a folder of an older version.
    assert workdirs.damage(folder) == []


def test_a_workdir_that_is_no_folder(tmp_path, config):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name, what in (("file", "a file"), ("link", "a link to what is not there")):
        with pytest.raises(InputError, match=f"--workdir: .*{name} is {what}; accepted: a folder"):
            workdirs.check(tmp_path / name, config)


def test_labels_that_mean_other_classes(folder, config):
    renamed = dataclasses.replace(INFO, class_names=("b", "c", "z"))
    with pytest.raises(InputError, match=r"the classes of d are not those .* \(label 0 was a, is b\)"):
        workdirs.check(folder, config, renamed)
    autoregressive = dataclasses.replace(config, task="autoregressive")
    workdirs.write(folder, autoregressive, INFO)
    assert workdirs.check(folder, autoregressive, renamed) == ["label 0 was a, is b"]


def test_counts_that_differ(folder, config):
    more = dataclasses.replace(INFO, num_examples={"train": 25, "test": 12})
    assert workdirs.check(folder, config, more) == ["the train split had 24 examples, has 25"]


def test_a_palette_that_is_gone(tmp_path, config):
    run = start_run(config, tmp_path)
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds parameters of a model of colours but no palette\.npy"):
        starting.choose_palette(run)
    (tmp_path / "checkpoints" / "10").rmdir()
    (tmp_path / workdirs.PARAMS).touch()  # A run that is kept without checkpoints.
    with pytest.raises(InputError, match=r"holds parameters of a model of colours but no palette\.npy"):
        starting.choose_palette(run)
    np.save(tmp_path / "palette.npy", np.zeros((4, 3), np.float32))
    assert starting.choose_palette(run).shape == (4, 3)


def test_names_of_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.folder("~/run") == tmp_path / "run"
    for name in ("gs://bucket/run", "s3://b", "file:///run"):
        with pytest.raises(InputError, match=f"--workdir: found {name}; accepted: a folder"):
            cli.folder(name)
    with pytest.raises(InputError, match="--workdir: found ~nobody-of-this-name/run"):
        cli.folder("~nobody-of-this-name/run")
    assert str(cli.folder("runs/[lr=0.1]")) == "runs/[lr=0.1]"


def test_a_report_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "report").write_text("a file where the folder would be")
    assert not write_if_possible(tmp_path / "report" / "evaluate.json", "{}")
    assert " ".join(capsys.readouterr().out.split()).startswith("not written: ")
    assert write_if_possible(tmp_path / "other" / "evaluate.json", "{}")
    assert (tmp_path / "other" / "evaluate.json").read_text() == "{}"


def test_files_that_were_replaced(folder, config):
    workdirs.write(folder, config, dataclasses.replace(INFO, fingerprint="1"))
    assert workdirs.check(folder, config, dataclasses.replace(INFO, fingerprint="1")) == []
    changes = workdirs.check(folder, config, dataclasses.replace(INFO, fingerprint="2"))
    assert changes == ["the files of d are others, by their names or sizes; their number is the same"]
    workdirs.write(folder, config, INFO)  # By an older version.
    values = json.loads((folder / "dataset.json").read_text())
    del values["fingerprint"]
    (folder / "dataset.json").write_text(json.dumps(values))
    (folder / "checksums.txt").unlink()
    assert workdirs.check(folder, config, dataclasses.replace(INFO, fingerprint="2")) == []


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "17",
        "null",
        '"x"',
        "nonsense",
        "\xff",
        '{"class_names": 3}',
        '{"name": "d", "class_names": [], "x": 1}',
    ],
)
def test_a_description_of_the_data_that_is_none(folder, config, content):
    (folder / "dataset.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"dataset\.json (does not describe a dataset|is not valid JSON)"):
        workdirs.check(folder, config, INFO)


def test_a_number_of_classes_that_the_data_do_not_have(config, tmp_path):
    changed = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=2))
    with pytest.raises(InputError, match=r"model\.num_classes: found 2; accepted: 10, that of the images"):
        start_run(changed, tmp_path, {"model.num_classes"})
    assert start_run(changed, tmp_path).config.model.num_classes == 10  # The file's, which data may change.
