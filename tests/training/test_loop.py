"""The loop as a library: what it hands to readers, what it writes, how it ends."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY, load_config, metrics

from crate_jax import InputError
from crate_jax.parallel import processes
from crate_jax.runs import workdir
from crate_jax.runs.config import steps
from crate_jax.training import loop
from crate_jax.training.loop import Reader, train
from crate_jax.training.opening import open_run
from crate_jax.training.program import make_schedule
from crate_jax.training.run_data import RunData
from crate_jax.training.starting import start_run
from crate_jax.training.state import TrainState

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


def test_parameters_that_are_not_finite_replace_no_checkpoint(run, monkeypatch):
    config = dataclasses.replace(run.config, checkpoint=steps(1))
    run = dataclasses.replace(run, config=config)
    monkeypatch.setattr(loop.steps, "find_unusable", lambda state, mesh: "w" if state.step == 3 else None)
    with pytest.raises(FloatingPointError, match=r"step 3: w is not finite .* the last checkpoint is step 2"):
        train(run)
    assert open_run(run.workdir).step == 2
    assert not any(line.get("final") for line in metrics(run.workdir))


@pytest.mark.parametrize(("step", "end"), [(4, {"final": True}), (8, {})])
def test_metrics_whose_checkpoints_are_gone_are_not_written_over(run, capsys, step, end):
    """An emptied folder of checkpoints: refused where the run had saved, said where it was killed before."""
    workdir.write(run.workdir, run.config, run.info)
    (run.workdir / "checkpoints").mkdir()
    file, say = run.workdir / "metrics.jsonl", loop._Loop._say_what_is_written_again
    lines = [{"step": 2, "train/loss": 1.0}, {"step": step, "train/loss": 1.0, **end}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="holds the metrics of a run but no checkpoints"):
        say(SimpleNamespace(run=run))
    file.write_text(json.dumps(lines[0]) + "\n")
    say(SimpleNamespace(run=run))
    said = " ".join(capsys.readouterr().out.split())
    assert said.endswith("the run starts anew, its metrics up to step 2 are written again")


def test_the_first_parameter_that_is_not_finite_is_named(run):
    params = {"a": np.ones(3, np.float32), "b": np.array([1, np.nan], np.float32)}
    state = TrainState(np.int32(1), params, None, None, {}, np.bool_(False))
    assert loop.steps.find_unusable(state, run.mesh) == "params/b"
    good = dataclasses.replace(state, params={"a": params["a"]})
    assert loop.steps.find_unusable(good, run.mesh) is None
    assert loop.steps.find_unusable(dataclasses.replace(good, ema=params), run.mesh) == "ema/b"


def test_another_length_says_what_becomes_of_the_learning_rate(run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(processes.StopSignals, "stop_after", lambda signals, step: step == 2)
        assert train(run).stopped
    longer = dataclasses.replace(run, config=dataclasses.replace(run.config, total=steps(6)))
    old, new = (float(make_schedule(one)(2)) for one in (run, longer))
    assert old != new
    capsys.readouterr()
    train(longer)
    out = " ".join(capsys.readouterr().out.split())
    assert f"had 4 steps, has 6: the learning rate after step 2 was {old:.3g}, is {new:.3g}" in out
    train(run)
    assert "step 6 is past the end, 4: nothing is trained" in " ".join(capsys.readouterr().out.split())


def test_an_image_that_cannot_be_read_ends_a_run_that_is_saved_first(run, monkeypatch):
    """Mended, the run goes on as if nothing had been."""
    whole = train(dataclasses.replace(run, workdir=run.workdir.with_name("whole")))
    third = run.data.train_batches().batch(2)["index"]
    images = type(run.data).source(run.data, "train", fitted=False)

    class Broken:
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            if index in third:
                raise InputError("a.jpg: unreadable image")
            return images[index]

    read = RunData.source
    monkeypatch.setattr(
        RunData,
        "source",
        lambda self, use, fitted=True: read(self, use, fitted=fitted) if fitted else Broken(),
    )
    run = dataclasses.replace(run)  # Its data are found anew.
    with pytest.raises(InputError, match=r"a\.jpg: unreadable image; the run is saved at step 2"):
        train(run)
    monkeypatch.undo()
    result = train(dataclasses.replace(run))
    assert result.values == whole.values


def test_data_that_cannot_be_read_at_once_save_nothing(run, monkeypatch):
    def fail(self, start):
        raise InputError("a.jpg: unreadable image")
        yield

    monkeypatch.setattr("crate_jax.data.pipeline.Batches.iterate", fail)
    with pytest.raises(InputError, match=r"^a\.jpg: unreadable image$"):
        train(run)
    assert not list((run.workdir / "checkpoints").iterdir())
