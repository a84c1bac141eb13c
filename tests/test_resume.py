"""Stopping and resuming, with real processes: the continued run is the uninterrupted one, bit for bit."""

import dataclasses
import signal
import subprocess
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import ROOT, command, environment, load_config, metrics, run

pytestmark = pytest.mark.slow


def final_arrays(workdir, last: int = 30) -> list[np.ndarray]:
    """Every array of the last checkpoint: parameters, optimiser, average, sums, step."""
    import jax

    manager = ocp.CheckpointManager(workdir.absolute() / "checkpoints")
    step = manager.latest_step()
    assert step == last
    return [
        np.asarray(leaf) for leaf in jax.tree.leaves(manager.restore(step, args=ocp.args.StandardRestore()))
    ]


def assert_same_run(one, other, last: int = 30):
    for a, b in zip(final_arrays(one, last), final_arrays(other, last), strict=True):
        np.testing.assert_array_equal(a, b)
    assert metrics(one) == metrics(other)
    assert metrics(one)[-1]["final"] is True


def start(workdir, flags):
    return subprocess.Popen(
        [*command("train", f"--workdir={workdir}"), *flags],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    from conftest import TINY

    workdir = tmp_path_factory.mktemp("untouched")
    flags = ["--config=configs/base.py", *(f"--config.{key}={value}" for key, value in TINY.items())]
    done = run([*command("train", f"--workdir={workdir}"), *flags])
    assert done.returncode == 0, done.stderr
    return workdir


def test_sigkill_between_saves(untouched, tiny_flags, tmp_path):
    process = start(tmp_path, tiny_flags)
    wait_for((tmp_path / "checkpoints" / "10").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # What a killed writer may leave behind: half a line.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "train/lo')
    done = run([*command("train", f"--workdir={tmp_path}"), *tiny_flags])
    assert done.returncode == 0, done.stderr
    assert "resuming after" in done.stdout
    assert_same_run(tmp_path, untouched)


def test_sigkill_during_a_save(untouched, tiny_flags, tmp_path):
    process = start(tmp_path, tiny_flags)
    folder = tmp_path / "checkpoints"
    wait_for(lambda: folder.exists() and any("tmp" in path.name for path in folder.iterdir()), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = run([*command("train", f"--workdir={tmp_path}"), *tiny_flags])
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path, untouched)


def test_sigterm_saves_and_says_how_to_resume(untouched, tiny_flags, tmp_path):
    process = start(tmp_path, tiny_flags)
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists() and len(metrics(tmp_path)) >= 1, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert f"start again with --workdir={tmp_path}" in " ".join(out.split())
    done = run([*command("train", f"--workdir={tmp_path}"), *tiny_flags])
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path, untouched)


def test_a_finished_run_started_again_ends_the_same(untouched, tiny_flags):
    before = metrics(untouched)
    done = run([*command("train", f"--workdir={untouched}"), *tiny_flags])
    assert done.returncode == 0, done.stderr
    assert metrics(untouched) == before


@pytest.mark.parametrize("file", ["configs/simdino.py", "configs/mae.py"])
def test_a_teacher_and_masks_go_on_where_they_stopped(file, tmp_path, compile_once, monkeypatch):
    """Views, masks and the teacher's momentum are functions of the step, so a run in two parts is the run in one."""
    from crate_jax.parallel import processes
    from crate_jax.training import evaluation
    from crate_jax.training.loop import train
    from crate_jax.training.starting import start_run

    monkeypatch.setattr(evaluation, "evaluate", lambda *_: {"loss": 0.0, "count": 1.0})
    lengths = {"total_steps": 4, "log_steps": 1, "checkpoint_steps": 4}
    sizes = {"model.dim": 8, "model.depth": 1, "model.heads": 2, "model.head_dim": 4, "batch_size": 8}
    views = {"simdino.local_views": 1} if "simdino" in file else {}
    config = load_config({**sizes, **lengths, **views}, file)
    config = dataclasses.replace(config, eval=None, trace=None)
    train(start_run(config, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(processes.StopSignals, "stop_after", lambda signals, step: step == 2)
        assert train(start_run(config, tmp_path / "parts")).stopped
    assert [line["step"] for line in metrics(tmp_path / "parts")] == [1, 2]
    assert not train(start_run(config, tmp_path / "parts")).stopped
    whole, parts = (final_arrays(tmp_path / name, last=4) for name in ("whole", "parts"))
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
