"""The loop as a library: what it hands to readers, what it writes, how it ends."""

import dataclasses

import numpy as np
import pytest
from conftest import TINY, load_config, metrics

from crate_jax.parallel import processes
from crate_jax.runs.config import steps
from crate_jax.training.loop import Reader, train
from crate_jax.training.opening import open_run
from crate_jax.training.starting import start_run

SHORT = {**TINY, "total_steps": 4, "warmup_steps": 1, "log_steps": 2, "checkpoint_steps": 4, "batch_size": 8}


@pytest.fixture
def run(tmp_path):
    config = load_config(SHORT)
    return start_run(dataclasses.replace(config, eval=None, trace=None), tmp_path / "run")


def test_readers_are_asked_at_their_own_steps(run):
    seen = []

    def norm(params) -> dict[str, float]:
        seen.append(float(np.linalg.norm(params["position_embedding"])))
        return {"norm": seen[-1]}

    never = Reader(None, lambda params: pytest.fail("asked"))
    result = train(run, [Reader(steps(2), norm), Reader(steps(3), lambda params: {"three": 3.0}), never])
    assert not result.stopped and int(result.state.step) == 4
    lines = metrics(run.workdir)
    assert [(line["step"], line["norm"]) for line in lines if "norm" in line] == list(
        zip((2, 4), seen, strict=True)
    )
    assert [line["step"] for line in lines if "three" in line] == [3]
    assert lines[-1] == {"step": 4, **result.values, "final": True}
    # Reports are the caller's.
    assert not list((run.workdir / "report").iterdir())


def test_a_stopped_run_is_saved_and_says_so(run, monkeypatch):
    monkeypatch.setattr(processes.StopSignals, "stop_after", lambda signals, step: step == 3)
    result = train(run)
    assert result.stopped and result.values is None
    _, params, step = open_run(run.workdir)
    assert step == 3
    np.testing.assert_array_equal(params["position_embedding"], result.state.params["position_embedding"])
    assert not any(line.get("final") for line in metrics(run.workdir))
