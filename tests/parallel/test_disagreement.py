"""Two real processes that are not of one mind: both end within a minute, with one line and exit code 2."""

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, command, environment, free_port

# A setting of each group of the configuration, and what is not in it.
OTHER = {
    "run": {"seed": 1},
    "length": {"total_steps": 20},
    "model": {"model.dim": 32},
    "data": {"data.mixup": 0.5},
    "optimizer": {"optimizer.lr": 1e-2},
    "regularizer": {"regularizer.penalty": 0.5},
    "simdino": {"simdino.local_views": 2},
    "mesh": {"mesh.preset": "fsdp"},
}


def start(started, workdir: Path, port: int, process: int, cwd: Path = ROOT, **config) -> subprocess.Popen:
    flags = f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={process}"
    arguments = command(
        "train", f"--config={ROOT}/configs/base.py", f"--workdir={workdir}", *flags, **{**TINY, **config}
    )
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    made = subprocess.Popen(arguments, cwd=cwd, env=environment(), start_new_session=True, **streams)
    started.append(made)
    return made


def errors(*processes: subprocess.Popen) -> list[str]:
    """The line of each process, all of which end with exit code 2."""
    lines = []
    for process in processes:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2, err
        lines += [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == len(processes)
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("group", OTHER)
def test_one_setting_differs(group, started, tmp_path):
    port = free_port()
    first, second = errors(
        start(started, tmp_path, port, 0), start(started, tmp_path, port, 1, **OTHER[group])
    )
    assert first == second
    assert first.startswith(f"error: --config.{next(iter(OTHER[group]))}: found ")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_data_that_only_one_has(started, tmp_path):
    """The other one hears of a failure that it does not meet itself."""
    data, port = tmp_path / "data.npz", free_port()
    np.savez(data, images=np.zeros((20, 8, 8), np.uint8), labels=np.arange(20) % 2)
    name = os.path.relpath(data, ROOT)  # Seen from the root of the checkout alone.
    made = [
        start(started, tmp_path / "run", port, process, cwd=place, **{"data.name": f"npz:{name}"})
        for process, place in enumerate((ROOT, tmp_path))
    ]
    first, second = errors(*made)
    assert first == second and first.startswith("error: process 1 of 2: file ")
    assert "does not exist" in first


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_stopped(how, started, tmp_path):
    port = free_port()
    endless = {"total_steps": 100_000, "eval_steps": 0, "checkpoint_steps": 0, "trace_steps": 0}
    made = [start(started, tmp_path, port, process, **endless) for process in range(2)]
    while "step " not in (line := made[0].stdout.readline()):
        assert line, made[0].stderr.read()
    os.kill(made[1].pid, how)
    _, err = made[0].communicate(timeout=90)
    assert made[0].returncode == 1
    word = {signal.SIGKILL: "has ended without a word", signal.SIGSTOP: "has been silent for 40 seconds"}[how]
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert line.startswith("error: process 1 (") and f"PID {made[1].pid}) {word}" in line
    assert "Fatal Python error" not in err
