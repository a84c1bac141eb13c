"""What is printed where nobody watches a terminal: some thirty lines a run, however often it logs."""

import pytest

from crate_jax.runs import console
from crate_jax.runs.console import TrainingProgress, human_bytes, progress


def lines(capsys, total: int, start: int, log: int, evaluate: int) -> list[str]:
    with TrainingProgress(total, start) as shown:
        for step in range(start + 1, total + 1):
            shown.advance(step)
            if step % log == 0 or step == total:
                shown.log(
                    step, {"train/loss": 1.0, "train/examples_per_second": 9.0, "train/data_wait_fraction": 0}
                )
            if step % evaluate == 0 or step == total:
                shown.log(step, {"eval/loss": 2.0, "eval/accuracy": 0.5})
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("total", "start", "log", "evaluate"), [(10_000, 0, 1, 1), (10_000, 4000, 7, 30), (2000, 0, 20, 200)]
)
def test_a_run_prints_some_thirty_lines(total, start, log, evaluate, capsys):
    found = lines(capsys, total, start, log, evaluate)
    assert 20 <= len(found) <= 33
    steps = [int(line.split()[1].partition("/")[0]) for line in found]
    assert steps == sorted(steps)
    assert steps[0] <= start + log, "the first one shows that the run is alive"
    assert steps[-1] == total
    assert any("test 0.5000" in line for line in found[-2:])
    # They are spread over the run.
    assert max(b - a for a, b in zip([start, *steps], steps, strict=False)) < (total - start) / 10


def test_few_logs_are_all_printed(capsys):
    assert len(lines(capsys, 20, 0, 5, 10)) == 4 + 2


def test_other_progress_is_as_short(capsys, monkeypatch):
    monkeypatch.setattr(console, "PROGRESS_SECONDS", 0)
    with progress("things", 10_000) as advance:
        for _ in range(10_000):
            advance(1)
    assert 20 <= len(capsys.readouterr().out.splitlines()) <= console.PROGRESS_LINES


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**50, "1024.0 TiB")]
)
def test_bytes_for_people(count, text):
    assert human_bytes(count) == text


@pytest.mark.parametrize("name", ["sweep[lr=0.1]", "x[/a]", "[red]a", ":warning:", "a\\[b"])
def test_names_of_files_are_printed_as_they_are(name, capsys):
    """No name is read as markup or as an emoji, wherever it stands."""
    console.console.print(f"again with --workdir={name}")
    console.table(name, {name: name})
    console.wide_table(name, [name], [[name]])
    out = capsys.readouterr().out
    assert out.count(name) == 7 and f"--workdir={name}\n" in out
    with progress(name, 2) as advance:
        advance(2)
