"""Runs of every task as an earlier commit left them half way: they open, sample, and go on to the numbers of that commit.

tests/fixtures/make_runs.py made them and says what an archive holds. Only commands and files of the workdir are used here.
"""

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, metrics

from crate_jax import evaluate, train
from crate_jax import sample as sample_command

ARCHIVES = Path(__file__).parent / "fixtures" / "runs"
# The step of the checkpoint that the archives hold.
STOP = 4
# Across machines fp32 sums differ in the last bits; on one machine all numbers are equal.
RTOL = 1e-5


def write_colours(folder: Path) -> str:
    """Sixty 4×4 images of three classes as PNG files; the name of the dataset."""
    values = np.random.Philox(key=0).random_raw(60 * 4 * 4 * 3).astype(np.uint8).reshape(60, 4, 4, 3)
    for i, image in enumerate(values):
        path = folder / "abc"[i % 3] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    return f"folder:{folder}"


def write_text(folder: Path) -> str:
    """A thousand lines in one file; the name of the dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"The square of {i} is {i * i}.\n" for i in range(1000)]
    (folder / "squares.txt").write_bytes("".join(lines).encode())
    return f"text:{folder / 'squares.txt'}"


DATA = {"colours": write_colours, "text": write_text}


def sample(workdir: Path, flags: list[str], folder: Path) -> dict[str, list] | str:
    """What the sample command draws into a new folder: arrays by name, or a text."""
    sample_command.main(["sample", f"--workdir={workdir}", f"--output={folder / 'drawn'}", *flags])
    if not (folder / "drawn.npz").exists():
        return (folder / "drawn").read_text(encoding="utf-8")
    with np.load(folder / "drawn.npz") as file:
        return {name: file[name].tolist() for name in file.files}


def assert_close(found: dict, expected: dict, where: str = "") -> None:
    """All that is expected is there and the same, numbers up to rounding; there may be more."""
    for key, value in expected.items():
        at = f"{where}/{key}"
        assert key in found, f"{at} is missing"
        if isinstance(value, dict):
            assert_close(found[key], value, at)
        elif value is None or isinstance(value, str | bool):
            assert found[key] == value, at
        else:
            np.testing.assert_allclose(found[key], value, rtol=RTOL, err_msg=at)


@dataclasses.dataclass(frozen=True)
class OldRun:
    """An archive, unpacked where its data are not what config.json says."""

    workdir: Path
    expected: dict
    data: str

    @property
    def elsewhere(self) -> list[str]:
        """The flag that says where the data are now, for those that are files."""
        return [f"--config.data.name={self.data}"] if self.expected["data"] in DATA else []


@pytest.fixture(params=sorted(path.name.removesuffix(".tar.xz") for path in ARCHIVES.glob("*.tar.xz")))
def old(request, tmp_path) -> OldRun:
    shutil.unpack_archive(ARCHIVES / f"{request.param}.tar.xz", tmp_path, filter="data")
    expected = json.loads((tmp_path / "expected.json").read_text())
    kind = expected["data"]
    return OldRun(tmp_path / "run", expected, DATA[kind](tmp_path / "data") if kind in DATA else kind)


def test_the_archives_cover_every_task():
    found = {json.loads(_read(path, "run/config.json"))["task"] for path in ARCHIVES.glob("*.tar.xz")}
    assert found >= {
        "classify",
        "autoregressive",
        "bert",
        "joint",
        "masked_autoencoder",
        "autoencoder",
        "simdino",
    }


def _read(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        return tar.extractfile(name).read()


def test_it_evaluates_as_it_did(old):
    evaluate.main(["evaluate", f"--workdir={old.workdir}", *old.elsewhere])
    report = json.loads((old.workdir / "report" / "evaluate.json").read_text())
    assert report["step"] == STOP
    assert_close(report, {**old.expected["evaluate"], "data": old.data})


@pytest.mark.parametrize("old", ["igpt", "igpt_colours", "joint", "text"], indirect=True)
def test_it_draws_what_it_drew(old, tmp_path):
    drawn = sample(old.workdir, [*old.elsewhere, *old.expected["sample"]["flags"]], tmp_path)
    assert drawn == old.expected["sample"]["drawn"]


@pytest.mark.slow
def test_it_goes_on_to_the_same_end(old):
    """The command that started it, typed again; only the data may be elsewhere."""
    before = metrics(old.workdir)
    assert [line["step"] for line in before][-1] == STOP
    command = [f"--config={ROOT / old.expected['config']}", f"--workdir={old.workdir}"]
    # Measuring the input pipeline was a setting and is a command now; moments are settings of the optimisers that have some.
    gone = ["data.benchmark"]
    if {f"--config.optimizer.name={name}" for name in ("sgd", "adafactor")} & set(old.expected["flags"]):
        gone += ["optimizer.b1", "optimizer.b2", "optimizer.momentum_dtype"]
    flags = [
        flag for flag in old.expected["flags"] if flag.removeprefix("--config.").partition("=")[0] not in gone
    ]
    train.main(["train", "--sections=loss", *command, *flags, *old.elsewhere])
    lines = metrics(old.workdir)
    assert lines[: len(before)] == before
    assert len(lines) == len(old.expected["metrics"])
    for found, expected in zip(lines, old.expected["metrics"], strict=True):
        assert_close(found, expected, f"step {expected['step']}")
    assert lines[-1]["final"] is True
