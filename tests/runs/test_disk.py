"""Disks that are full and folders that cannot be written, each on a file system of its own, which needs root to mount."""

import os
import shutil
import subprocess

import cv2
import numpy as np
import pytest
from conftest import TINY, command, run

SMALL = {**TINY, "model.dim": 16, "model.depth": 1, "batch_size": 4, "total_steps": 6, "trace_steps": 0}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]


def mount(*arguments: str) -> None:
    if subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")


@pytest.fixture
def disk(tmp_path):
    """A disk of 300 KiB, of which a part is taken."""
    path = tmp_path / "disk"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "size=300k", "tmpfs", str(path))
    (path / "taken").write_bytes(bytes(180 * 1024))
    yield path
    subprocess.run(["umount", path], check=True)


def error_of(done) -> str:
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr, done.stderr
    return line


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(disk):
    config = {**SMALL, "checkpoint_steps": 1, "eval_steps": 1}
    done = run(command("train", "--config=configs/base.py", f"--workdir={disk / 'run'}", **config))
    assert done.returncode == 1
    assert error_of(done).startswith(f"error: No space left on device: {disk / 'run'}")
    assert not list((disk / "run" / "checkpoints").glob("*tmp*"))


def test_a_disk_that_fills_up_while_records_are_written(disk, tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(400):
            image = rng.integers(0, 256, (8, 8, 3), np.uint8)
            cv2.imwrite(str(tmp_path / "data" / name / f"{i}.png"), image)
    (disk / "taken").write_bytes(bytes(200 * 1024))
    for processes in (1, 2):
        output = disk / f"records-{processes}"
        flags = [f"--input=folder:{tmp_path / 'data'}", f"--output={output}", f"--processes={processes}"]
        done = run(command("prepare", *flags, "--shard_mib=0.05"))
        assert done.returncode == 1
        assert error_of(done).startswith(f"error: No space left on device: {output}")
        assert not list(output.glob(".*.tmp"))
        shutil.rmtree(output)


def test_a_run_that_cannot_be_written_is_looked_at(tmp_path):
    path = tmp_path / "run"
    done = run(command("train", "--config=configs/base.py", f"--workdir={path}", **SMALL))
    assert done.returncode == 0, done.stderr
    mount("--bind", str(path), str(path))
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)
        for name, said in (("evaluate", "accuracy"), ("probe", "k-NN")):
            done = run(command(name, f"--workdir={path}"))
            assert done.returncode == 0, done.stderr
            assert said in done.stdout and "Read-only file system" in done.stdout
    finally:
        subprocess.run(["umount", path], check=True)
