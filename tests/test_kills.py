"""Thirty random ends of two starters in one folder: the run that comes of it is the untouched one, bit for bit."""

import random
import re
import signal
import subprocess
import time

import pytest
from conftest import ROOT, TINY, command, environment
from test_resume import assert_same_run

STEPS, ENDS = 150, 30
# Seconds that a starter lives at most: it reaches its first checkpoint or not, trains, saves, or reports.
SPAN = 5.0


@pytest.mark.slow
def test_random_kills_of_two_starters(tmp_path, started):
    config = {**TINY, "total_steps": STEPS, "eval_steps": 50, "trace_steps": 0}
    arguments = command("train", "--config=configs/base.py", **config)
    env = {**environment(), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    shared, untouched = tmp_path / "shared", tmp_path / "untouched"

    def finish(workdir) -> None:
        flags = {"cwd": ROOT, "env": env, "capture_output": True, "text": True, "check": False}
        done = subprocess.run([*arguments, f"--workdir={workdir}"], **flags)
        assert done.returncode == 0, done.stderr

    finish(untouched)
    ends: dict[int, int] = {}
    refused = 0

    def start() -> subprocess.Popen:
        made = subprocess.Popen(
            [*arguments, f"--workdir={shared}"],
            cwd=ROOT,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(made)
        return made

    def collect(process: subprocess.Popen) -> None:
        """A starter ends by a signal, after its last step, saved, or because the other one owns the folder."""
        nonlocal refused
        _, err = process.communicate()
        assert process.returncode in (0, 2, 75, -signal.SIGKILL, -signal.SIGTERM), err
        if process.returncode == 2:
            owner = re.search(r"error: --workdir: \S+, PID (\d+) trains in", err)
            assert owner, err
            assert int(owner[1]) in {other.pid for other in started} - {process.pid}
            refused += 1

    rng = random.Random(0)
    pair = [start(), start()]
    for _ in range(ENDS):
        time.sleep(rng.uniform(0, SPAN))
        how, i = (
            rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP]),
            rng.randrange(2),
        )
        ends[how] = ends.get(how, 0) + 1
        pair[i].send_signal(how)
        if how == signal.SIGSTOP:  # A stopped owner still owns.
            time.sleep(rng.uniform(0, SPAN / 5))
            pair[i].send_signal(signal.SIGCONT)
        else:
            collect(pair[i])
            pair[i] = start()
        if pair[1 - i].poll() is not None:
            collect(pair[1 - i])
            pair[1 - i] = start()
    for process in pair:
        collect(process)
    assert refused and len(ends) == 3, (refused, ends)
    finish(shared)
    assert_same_run(shared, untouched, last=STEPS)
