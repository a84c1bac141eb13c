"""metrics.jsonl: torn lines, resuming, other writers."""

import json
import sys
import types

import pytest
from conftest import TINY, load_config

from crate_jax import InputError
from crate_jax.runs.metrics import MetricsWriter, read_metrics, write_atomically
from crate_jax.training.starting import start_run


def test_lines_past_the_resume_step_and_torn_lines_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 5, "a": 1.5}, {"step": 10, "a": 0.1}, {"step": 10, "b": True}, {"step": 15, "a": 2.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 20, "a')
    writer = MetricsWriter(tmp_path, resume_step=10)
    writer.write(12, {"a": 3.0})
    writer.close()
    assert read_metrics(path) == [*lines[:3], {"step": 12, "a": 3.0}]


def test_numbers_survive_the_round_trip_exactly(tmp_path):
    writer = MetricsWriter(tmp_path, resume_step=0)
    values = {"x": 0.1 + 0.2, "y": 1e-30}
    writer.write(1, values)
    writer.close()
    MetricsWriter(tmp_path, resume_step=1).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, **values}]


def test_wandb_only_when_asked_for(tmp_path, monkeypatch):
    logged = []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    module = types.SimpleNamespace(init=lambda **kwargs: logged.append(kwargs) or run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    for project in (None, "crate"):
        writer = MetricsWriter(tmp_path, resume_step=0, wandb_project=project)
        writer.write(1, {"train/loss": 2.0, "final": True})
        writer.close()
    assert logged[0]["project"] == "crate"
    assert logged[1:] == [(1, {"train/loss": 2.0})]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_atomically(path, "old")
    with pytest.raises(TypeError):
        write_atomically(path, None)
    assert path.read_text() == "old"


def test_lines_that_are_no_lines_of_ours_are_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    odd = b'{"step": true}\n{"step": 1e400}\n{"step": 1, "a": null}\n{"step": 1, "a": "2"}\n{"step": 1, "a": [2]}\n'
    path.write_bytes(
        b'{"step": 1, "a": 2.0}\n17\n[]\n{"a": 1}\n\xff\xfe\n{"step": "x"}\n' + odd + b'{"step": 2}\n'
    )
    assert read_metrics(path) == [{"step": 1, "a": 2.0}, {"step": 2}]
    MetricsWriter(tmp_path, resume_step=1).close()
    assert path.read_text() == '{"step": 1, "a": 2.0}\n'


def test_runs_in_folders_of_one_name_are_two_in_wandb(tmp_path, monkeypatch):
    asked = []
    run = types.SimpleNamespace(finish=lambda: None)
    monkeypatch.setitem(
        sys.modules, "wandb", types.SimpleNamespace(init=lambda **given: asked.append(given) or run)
    )

    def start(folder: str, step: int = 0) -> str:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        MetricsWriter(tmp_path / folder, resume_step=step, wandb_project="p").close()
        assert asked[-1]["name"] == "seed0"
        return asked[-1]["id"]

    first, second = start("vit/seed0"), start("crate/seed0")
    assert first != second and first.startswith("seed0-")
    assert start("vit/seed0", 5) == start("vit/seed0") == first
    # A run of an older version keeps the name that it has.
    assert start("old/seed0", 5) == start("old/seed0", 9) == "seed0"


def test_wandb_that_is_not_installed_is_missed_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="wandb: found 'p', but the package wandb is not installed"):
        start_run(load_config({**TINY, "wandb": "p"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
