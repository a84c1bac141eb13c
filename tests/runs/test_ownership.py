"""A folder has one owner, who cannot leave it locked behind him."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, environment

from crate_jax import InputError
from crate_jax.runs import ownership
from crate_jax.runs.ownership import owned

# It holds the folder, and its worker says its own PID: by then the worker has let go of what it inherited.
OWNER = """
import os, sys, time
from pathlib import Path
from crate_jax.runs.ownership import owned
with owned(Path(sys.argv[1])):
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(600)
"""


def test_the_second_is_told_who_the_first_is(tmp_path):
    with owned(tmp_path / "run"):
        with pytest.raises(
            InputError, match=rf"--workdir: {socket.gethostname()}, PID {os.getpid()} trains in"
        ):
            with owned(tmp_path / "run"):
                pytest.fail("two owners")
        with owned(tmp_path / "other"):
            pass
    with owned(tmp_path / "run"):
        pass


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_owner_owns_and_a_dead_one_does_not(tmp_path, end):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=ROOT, env=environment(), stdout=subprocess.PIPE
    )
    worker = int(owner.stdout.readline())
    try:
        owner.send_signal(signal.SIGSTOP)
        with pytest.raises(InputError, match=f"PID {owner.pid} trains in"), owned(tmp_path):
            pytest.fail("two owners")
        owner.send_signal(end)
        owner.send_signal(signal.SIGCONT)
        owner.wait(60)
        os.kill(worker, 0)  # The worker is still there.
        with owned(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        owner.kill()
        owner.wait()
        owner.stdout.close()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(ownership.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(ownership.fcntl, "flock", refuse)
    with owned(tmp_path):
        assert "no locks on this file system" in capsys.readouterr().out
