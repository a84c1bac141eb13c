"""Studies: what several runs say together, and the command that makes them."""

import dataclasses
import json
import os
import runpy
import signal
import sys
import threading
import time

import pytest
from conftest import ROOT, TINY, load_config

from crate_jax import InputError, models, study
from crate_jax.analysis import ablation, scaling
from crate_jax.runs.config import to_config_dict
from crate_jax.train import train

SHRUNK = {key: value for key, value in TINY.items() if not key.startswith("model.")}
SHRUNK |= {"model.dim": 16, "model.depth": 2, "model.heads": 2, "total_steps": 10, "eval_steps": 5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run of a study with a stand-in for its probe."""
    workdir = tmp_path_factory.mktemp("study") / "one"
    values = train(load_config(SHRUNK, "configs/igpt.py"), workdir, sections="loss")
    probes = {
        # The best layer is the best on held-out training data, not on the test split.
        "step-10": {"accuracy": [0.75, 0.5], "validation": [0.5, 0.75]},
        "untrained": {"accuracy": [0.25, 0.125], "validation": [0.5, 0.25]},
        "pixels": {"accuracy": [0.625], "validation": [0.5]},
    }
    (workdir / "report" / "probe.json").write_text(json.dumps({"probes": probes}))
    return workdir, values


def test_summary_of_a_run(trained):
    workdir, values = trained
    assert study.is_done("train", workdir)
    assert study.is_done("probe", workdir)
    row = scaling.summarise(workdir, "one")
    assert (row.probe, row.best_layer, row.untrained, row.pixels) == (0.5, 2, 0.25, 0.625)
    assert row.test_loss == values["eval/loss"]
    assert row.epochs == pytest.approx(10 * 32 / 1437)
    assert [epochs for epochs, _ in row.curve["train"]] == pytest.approx([5 * 32 / 1437, 10 * 32 / 1437])


def test_pictures_and_figures_are_written(trained, tmp_path):
    row = scaling.summarise(trained[0], "one")
    rows = [
        dataclasses.replace(row, epochs=epochs, num_params=size) for epochs in (2, 6) for size in (100, 1000)
    ]
    picture = scaling.write(rows, tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [entry["num_params"] for entry in json.loads((tmp_path / "scaling.json").read_text())] == [
        100,
        1000,
    ] * 2


THIRD = """
from crate_jax import models
from crate_jax.runs.config import Config, choose
from crate_jax.runs.studies import Study, variants

STUDIES = {"third": Study(dict.fromkeys("ab", lambda: Config(models.crate("tiny"))), analysis="third_analysis")}


def get_config(variant="third/a"):
    return choose(variant, variants(STUDIES))
"""
ANALYSIS = """
COMMANDS, HEADERS = ("train", "evaluate"), ("run",)


class Row(str):
    def cells(self):
        return [self]


def read(workdir, names):
    return [Row(name) for name in names]


def write(rows, workdir):
    (workdir / "third.png").write_text(" ".join(rows))
    return workdir / "third.png"
"""


@pytest.fixture
def third(tmp_path, monkeypatch):
    """The command line of a study that this package knows nothing of, and the commands that it called."""
    (tmp_path / "third_analysis.py").write_text(ANALYSIS)
    (tmp_path / "config.py").write_text(THIRD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "third_analysis", raising=False)
    called = []
    monkeypatch.setattr(study, "_call", lambda *arguments: called.append(arguments))
    return ["study", f"--config={tmp_path / 'config.py'}:third", f"--workdir={tmp_path / 'out'}"], called


def test_a_study_names_its_own_analysis(third, tmp_path, capsys):
    arguments, called = third
    (tmp_path / "out" / "b" / "report").mkdir(parents=True)
    (tmp_path / "out" / "b" / "metrics.jsonl").write_text('{"step": 1, "final": true}\n')
    assert study.main([*arguments, "--config.seed=3"]) is None
    config, a, b = f"--config={tmp_path / 'config.py'}:third", tmp_path / "out" / "a", tmp_path / "out" / "b"
    assert called == [
        ("train", f"--workdir={a}", f"{config}/a", "--config.seed=3"),
        ("evaluate", f"--workdir={a}"),
        ("evaluate", f"--workdir={b}"),
    ]
    assert (tmp_path / "out" / "third.png").read_text() == "a b"
    assert "third: 2 runs" in capsys.readouterr().out


def test_a_run_that_was_stopped_stops_the_study(third, tmp_path, monkeypatch):
    arguments, called = third
    monkeypatch.setattr(study, "_call", lambda *given: called.append(given) or 75)
    assert study.main(arguments) == 75
    assert len(called) == 1 and not (tmp_path / "out" / "third.png").exists()


def test_an_analysis_that_is_not_there_is_bad_input(third, tmp_path):
    arguments, _ = third
    file = tmp_path / "config.py"
    file.write_text(file.read_text().replace("third_analysis", "nowhere.to_be_found"))
    with pytest.raises(InputError, match=r"analysis nowhere\.to_be_found cannot be imported"):
        study.main(arguments)


def test_a_run_without_its_end_is_not_trained(tmp_path):
    assert not study.is_done("train", tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "train/loss": 1.0}\n')
    assert not study.is_done("train", tmp_path)


def test_a_study_goes_on_as_it_was_started(tmp_path):
    workdir = tmp_path / "new" / "study"
    study.record(workdir, "ablation", ["--config.seed=1", "--config.batch_size=8"])
    study.record(workdir, "ablation", ["--config.batch_size=8", "--config.seed=1"])
    message = (
        "was started otherwise: found ablation --config.seed=2; accepted: ablation --config.batch_size=8 "
    )
    with pytest.raises(InputError, match=message):
        study.record(workdir, "ablation", ["--config.seed=2"])
    with pytest.raises(InputError, match="was started otherwise: found scaling"):
        study.record(workdir, "scaling", ["--config.batch_size=8", "--config.seed=1"])
    assert [path.name for path in workdir.iterdir()] == ["study.json"]
    with pytest.raises(InputError, match="is a file"):
        study.record(workdir / "study.json", "ablation", [])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--config is required: .* To start: python -m crate_jax.study"),
        (
            ["--config=configs/igpt.py:scaling", "--workdir=x", "--wordir=y"],
            "--wordir; did you mean --workdir?",
        ),
        (
            ["--config=configs/igpt.py:scaling", "--workdir=x", "--config.sed", "2"],
            "unknown key sed; did you mean seed",
        ),
        (["--config=configs/none.py:scaling", "--workdir=x"], "no file configs/none.py"),
        (
            ["--config=configs/igpt.py:scalling", "--workdir=x"],
            "found 'scalling'; accepted: scaling",
        ),
        (["--config=configs/base.py:scaling", "--workdir=x"], "found 'scaling'; accepted: nothing"),
    ],
)
def test_mistakes(flags, message):
    with pytest.raises(InputError, match=message):
        study.main(["study", *flags])


@pytest.mark.parametrize(
    ("ends", "code"), [("exit 0", 0), ("exit 1", 1), ("exit 2", 2), ("exit 75", 75), ("kill -KILL $$", 1)]
)
def test_a_study_ends_as_its_run_does(ends, code, tmp_path, monkeypatch, capfd):
    stand_in(ends, tmp_path, monkeypatch)
    assert study._call("train", "--workdir=x") == code
    assert len(capfd.readouterr().err.splitlines()) == (code != 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_study_that_is_told_to_stop_lets_its_run_save(number, tmp_path, monkeypatch):
    before = signal.getsignal(number)
    stand_in(
        f"trap 'exit 75' TERM; touch {tmp_path}/started; while :; do sleep 0.02; done", tmp_path, monkeypatch
    )

    def tell():
        while not (tmp_path / "started").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=tell).start()
    assert study._call("train") == 75
    assert signal.getsignal(number) is before


def stand_in(ends, folder, monkeypatch):
    """A shell script in place of Python."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{ends}\n")
    python.chmod(0o755)
    monkeypatch.setattr(study.sys, "executable", str(python))


STUDIES = [
    (path.name, f"{study_name}/{name}")
    for path in sorted((ROOT / "configs").glob("*.py"))
    for study_name, declared in runpy.run_path(str(path)).get("STUDIES", {}).items()
    for name in declared.runs
]


@pytest.mark.parametrize(("file", "variant"), STUDIES)
def test_every_member_of_a_study_builds(file, variant):
    config = load_config({}, f"configs/{file}", variant)
    assert models.create(config.model).num_params > 0


def test_an_ablation_is_read_by_variant_over_its_seeds(tmp_path):
    """Runs that are not done do not count; black boxes have no layers."""
    for name, accuracy, layers in (("a-0", 0.5, True), ("a-1", 0.6, True), ("b-0", 0.25, False)):
        run = tmp_path / name
        (run / "report").mkdir(parents=True)
        final = {"step": 9, "eval/accuracy": accuracy, "eval/loss": 1.0, "final": True}
        (run / "metrics.jsonl").write_text(json.dumps(final) + "\n")
        config = load_config({}, "configs/crate.py", "ablation/released-0")
        (run / "config.json").write_text(json.dumps(to_config_dict(config).to_dict()))
        if layers:
            readings = {
                "coding_rate_before": [4.0, 2.0],
                "coding_rate": [3.0, 2.0],
                "nonzero_fraction": [0.5, 0.25],
            }
            readings = {key: {"mean": value, "std": [0.0, 0.0]} for key, value in readings.items()}
            (run / "report" / "layerwise.json").write_text(json.dumps({"trained": readings}))
    (tmp_path / "b-1").mkdir()
    (tmp_path / "b-1" / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    rows = ablation.read(tmp_path, ["a-0", "b-0", "a-1", "b-1"])
    assert [row.name for row in rows] == ["a", "b"]
    assert rows[0].cells()[:6] == ["a", "125,002", 2, "55.00 ± 7.07", "1.000 ± 0.000", "-12.5 ± 0.0"]
    assert rows[0].cells()[6:] == ["0.67 ± 0.00", "37.5 ± 0.0"]
    assert rows[1].cells()[2:] == [1, "25.00", "1.000", "–", "–", "–"]
    assert ablation.write(rows, tmp_path).read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "ablation.json").read_text())[1]["accuracy"] == [0.25]
