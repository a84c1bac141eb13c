"""The nightly command: which trainings it repeats, and what it makes of their results."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks import results


@pytest.mark.parametrize(("change", "good"), [(0.0, True), (-0.01, True), (-0.06, False), (0.06, False)])
def test_the_five_cheapest_are_compared_with_their_files(monkeypatch, capsys, change, good):
    cheapest = {(name, title, seed): run for _, name, title, run, seed in results.recorded()[:5]}
    rows = {
        id(row): (name, title) for name, titles in results.RESULTS.items() for title, row in titles.items()
    }

    def measured(run):
        before = cheapest[(*rows[id(run.row)], run.seed)]
        key = "accuracy" if "accuracy" in before else "loss"
        return {**before, key: before[key] + change}

    monkeypatch.setattr(results, "measure", measured)
    assert results.nightly() is good
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_an_accuracy_may_differ_by_two_standard_errors():
    assert results.allowed("accuracy", {"accuracy": 0.9, "count": 360}) == pytest.approx(0.04472, abs=1e-5)
    assert results.allowed("loss", {"loss": 2.0}) == pytest.approx(0.1)
