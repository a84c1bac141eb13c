"""metrics.jsonl: torn lines, resuming, other writers."""

import json
import sys
import types

import pytest

from crate_jax.runs.metrics import MetricsWriter, read_metrics, write_atomically


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
