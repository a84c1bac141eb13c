"""Several processes compute what one does, stop together, resume elsewhere, and end when one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, environment, free_port

from crate_jax import InputError
from crate_jax.parallel import processes
from crate_jax.runs.flags import take


def observe(started, out: Path, folder: Path, *meshes: str, count: int = 1, devices: int) -> dict[str, dict]:
    """What observe_meshes.py finds on each mesh, run by `count` processes of so many devices."""
    arguments = [
        sys.executable,
        str(Path(__file__).with_name("observe_meshes.py")),
        str(out),
        str(folder),
        *meshes,
    ]
    flags = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}"] if count > 1 else []
    here = [
        subprocess.Popen(
            [*arguments, *flags, *([f"--process_id={index}"] if flags else [])],
            cwd=ROOT,
            env=environment(devices),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for index in range(count)
    ]
    started += here
    for process in here:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    found: dict[str, dict] = {}
    with np.load(out) as arrays:
        for name, array in arrays.items():
            mesh, what = name.split("/")
            found.setdefault(mesh, {})[what] = array
    return found


def relative(a, b) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.slow
def test_processes_and_meshes_agree_and_resume_one_another(tmp_path, started):
    folder = tmp_path / "run"
    found = {}
    for name, meshes, count, devices in (
        ("2 processes × 2", ["2x2x1"], 2, 2),  # Saves the checkpoint that all others resume.
        ("4 processes × 1", ["1x4x1"], 4, 1),
        ("1 process × 8", ["1x1x1", "4x1x1", "1x2x2", "2x2x2"], 1, 8),
    ):
        out = tmp_path / "out.npz"
        for mesh, seen in observe(started, out, folder, *meshes, count=count, devices=devices).items():
            found[f"{name}: {mesh}"] = seen
    saved, one = found["2 processes × 2: 2x2x1"], found["1 process × 8: 1x1x1"]
    for name, seen in found.items():
        np.testing.assert_array_equal(seen["examples"], one["examples"], err_msg=name)
        assert relative(seen["gradients"], one["gradients"]) <= 1e-5, name
        np.testing.assert_allclose(seen["losses"], one["losses"], rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(seen["saved"], saved["saved"], err_msg=name)
        np.testing.assert_array_equal(seen["examples_after"], one["examples_after"], err_msg=name)
        assert relative(seen["gradients_after"], saved["gradients_after"]) <= 1e-5, name
    assert found["1 process × 8: 4x1x1"]["split"] == 0
    assert saved["split"] > 0


@pytest.mark.slow
def test_two_processes_stop_together_and_end_together(tmp_path, started):
    """SIGTERM on one saves on both at one step; started again, one is killed and the other does not wait for ever."""
    flags = [f"--config.{key}={value}" for key, value in TINY.items()]
    # Long enough that it never ends by itself.
    flags += ["--config.total_steps=100000", "--config.eval_steps=0", "--config.trace_steps=0"]

    def start() -> tuple[subprocess.Popen, list[int]]:
        log = (tmp_path / "log").open("w")
        arguments = ["launch/local.sh", "--processes=2", "--devices=2", "--config=configs/base.py", *flags]
        env = {**environment(2), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        launcher = subprocess.Popen(
            [*arguments, f"--workdir={tmp_path / 'run'}"],
            cwd=ROOT,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        started.append(launcher)
        deadline = time.monotonic() + 240
        while "step " not in (tmp_path / "log").read_text():
            assert launcher.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        return launcher, [int(child) for child in children]

    launcher, hosts = start()
    os.kill(hosts[1], signal.SIGTERM)
    assert launcher.wait(timeout=120) == 75, (tmp_path / "log").read_text()
    text = (tmp_path / "log").read_text()
    assert text.count("stopped and saved at step") == 1, text
    steps = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()}
    assert f"stopped and saved at step {max(steps)} of 100000" in " ".join(text.split())

    launcher, hosts = start()
    assert f"resuming after {max(steps)}" in (tmp_path / "log").read_text()
    os.kill(hosts[1], signal.SIGKILL)
    assert launcher.wait(timeout=60) != 0
    text = (tmp_path / "log").read_text()
    assert "has ended without a word" in text or "one of them has stopped" in text, text
    # What is left is whole: lines of JSON, and checkpoints that count.
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[:-1]:
        json.loads(line)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--coordinator=a:1"], "--num_processes, --process_id missing"),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "found 2; accepted: 0 to 1"),
        (["--coordinator=a", "--num_processes=2", "--process_id=0"], "accepted: HOST:PORT"),
        (["--coordinator=a:1", "--num_processes=two", "--process_id=0"], "found 'two'; accepted: a whole"),
    ],
)
def test_flags_that_mean_nothing(flags, message):
    with pytest.raises(InputError, match=message):
        processes.join(take(["train", *flags], processes.JobFlags)[0])
