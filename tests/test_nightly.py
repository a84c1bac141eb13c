"""Results of the pages: which trainings the nightly command repeats, what it makes of them, and which seeds are recorded."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks import results


@pytest.mark.parametrize(("change", "good"), [(0.0, True), (-0.9, True), (-1.1, False), (1.1, False)])
def test_the_five_cheapest_are_compared_with_their_files(monkeypatch, capsys, change, good):
    """`change` is in units of what is allowed."""
    cheapest = {(name, title, seed): run for _, name, title, run, seed in results.recorded()[:5]}
    rows = {
        id(row): (name, title) for name, titles in results.RESULTS.items() for title, row in titles.items()
    }

    def measured(run):
        before = cheapest[(*rows[id(run.row)], run.seed)]
        key = "accuracy" if "accuracy" in before else "loss"
        return {**before, key: before[key] + change * results.allowed(key, before)}

    monkeypatch.setattr(results, "measure", measured)
    assert results.nightly() is good
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_an_accuracy_may_differ_by_two_standard_errors():
    assert results.allowed("accuracy", {"accuracy": 0.9, "count": 360}) == pytest.approx(0.04472, abs=1e-5)
    assert results.allowed("loss", {"loss": 2.0}) == pytest.approx(0.1)
    assert results.allowed("loss", {"loss": -2.0}) == pytest.approx(0.1)  # SimDINO's.


def test_a_seed_counts_when_every_row_has_finished_it(monkeypatch, tmp_path, capsys):
    rows = {title: results.Row(f"configs/{title}.py") for title in ("first", "second")}
    monkeypatch.setitem(results.RESULTS, "two", rows)
    report = tmp_path / "two" / "first-0" / "report" / "report.json"
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps({"run": {"made_on": {"machine": "Linux", "devices": "1 × cpu"}}}))
    asked = []

    def measured(run):
        asked.append((run.seed, run.row.config))
        if run == (rows["second"], tmp_path / "two" / "second-1", 1, None, run.until, False):
            raise subprocess.TimeoutExpired("train", 3)
        return {"accuracy": 0.5 + run.seed / 10, "loss": 1.0, "seconds": 2.0}

    monkeypatch.setattr(results, "measure", measured)
    output = tmp_path / "two.json"
    flags = ["results", "two", f"--workdir={tmp_path}", f"--output={output}", "--seeds=0,1,2", "--limit=60"]
    monkeypatch.setattr(sys, "argv", flags)
    with pytest.raises(SystemExit) as stopped:
        results.main()
    assert stopped.value.code == 1 and "second, seed 1: left out" in capsys.readouterr().err
    assert [seed for seed, _ in asked] == [0, 0, 1, 1, 2, 2]
    found = json.loads(output.read_text())
    assert (
        found["seed"] == [0, 2] and found["seconds"] == 8.0 and found["command"].endswith("two --seeds=0,2")
    )
    assert found["values"]["first"]["accuracies %"] == [50.0, 70.0]
    assert found["values"]["second"]["deviation %"] == 14.14


def test_the_late_loss_weighs_lines_by_their_steps():
    steps, losses = (10, 90, 95, 99, 100), (9.0, 8.0, 7.0, 2.0, 1.0)
    lines = [{"step": step, "train/loss": loss} for step, loss in zip(steps, losses, strict=True)]
    assert results.late_loss([*lines, {"step": 100, "eval/loss": 5.0}]) == pytest.approx((4 * 2 + 1 * 1) / 5)


def test_a_run_past_its_time_is_not_started(tmp_path):
    run = results.Run(results.Row("configs/base.py"), tmp_path / "runs" / "late", 0, until=0.0)
    with pytest.raises(subprocess.TimeoutExpired):
        results.measure(run)
    assert not (tmp_path / "runs").exists()
