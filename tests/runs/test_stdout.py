"""A stdout that cannot take what is printed: of another encoding, or without a reader."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, environment

PRINT = """
from crate_jax.runs.console import console, replace_what_cannot_be_encoded, table
replace_what_cannot_be_encoded()
table("ω ± 1", {"π": "–"})
"""
# One thousand lines for a reader who is gone; then whether SIGTERM came.
SPEAK = """
import signal, sys
from crate_jax.runs.console import console
came = []
if sys.argv[1] == "trains":
    signal.signal(signal.SIGTERM, lambda *_: came.append(1))
for _ in range(1000):
    console.print("a line")
print("stopped" if came else "went on", file=sys.stderr)
"""


def start(code: str, *arguments: str, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_other_encodings_get_what_they_have(encoding):
    process = start(PRINT, PYTHONIOENCODING=encoding)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert b"? 1" in out if encoding == "ascii" else "± 1".encode(encoding) in out


@pytest.mark.parametrize(("what", "said", "code"), [("trains", b"stopped", 0), ("else", b"", 1)])
def test_a_reader_who_goes_away_stops_the_run(what, said, code):
    process = start(SPEAK, what)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(60) == code, err
    assert err.startswith(b"error: nobody reads stdout any more") and said in err
    assert err.count(b"\n") == (2 if said else 1)
    process.stderr.close()


@pytest.mark.parametrize(("what", "said", "code"), [("trains", "stopped", 0), ("else", "", 1)])
def test_a_full_disk_under_stdout_stops_the_run(what, said, code):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", SPEAK, what],
            cwd=ROOT,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: stdout cannot be written (No space left on device)")
    assert said in done.stderr and done.stderr.count("\n") == (2 if said else 1)


def test_a_stdout_that_is_closed_from_the_start():
    shell = ["sh", "-c", 'exec "$0" -c "$1" else >&-', sys.executable, SPEAK]
    done = subprocess.run(
        shell, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "went on\n")


def test_a_lost_terminal_is_a_wish_to_stop():
    from crate_jax.parallel.processes import StopSignals

    # These tests may themselves run under nohup.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with StopSignals() as signals:
            assert not signals.stop_after(1)
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.stop_after(2)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_under_nohup_a_lost_terminal_stops_nothing():
    from crate_jax.parallel.processes import StopSignals

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.stop_after(1)
    finally:
        signal.signal(signal.SIGHUP, before)
