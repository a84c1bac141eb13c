"""Damage to a checkpoint: it is found and named, other numbers are never read, and the one before it is used."""

import errno
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from crate_jax import InputError
from crate_jax.training import checksums
from crate_jax.training.checkpoint import Checkpoints
from crate_jax.training.state import TrainState


def make(step: int) -> TrainState:
    params = {"w": step + jnp.arange(6.0).reshape(3, 2)}
    return TrainState(jnp.int32(step), params, {"m": params["w"]}, None, {}, jnp.bool_(False))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A workdir with the checkpoints of steps 2 and 4; step 2 is the best one."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir)
    checkpoints.start_saving()
    for step, score in ((2, 1.0), (4, 0.0)):
        checkpoints.save(make(step=step), step, score)
        checkpoints.wait()
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "run")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def restore(checkpoints: Checkpoints, step: int):
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make(step=step)
    )
    return checkpoints.restore(abstract, step)


def test_every_file_has_a_checksum(saved):
    folder = saved / "checkpoints" / "4"
    listed = {line.split(" ", 2)[2] for line in (folder / checksums.LIST).read_text().splitlines()}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == listed | {checksums.LIST}
    assert any(name.startswith("default/ocdbt.process_0/d/") for name in listed)


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink], ids=["flipped", "cut", "removed"])
def test_damage_to_any_file_is_found_and_the_older_checkpoint_is_used(workdir, harm, capsys):
    folder = workdir / "checkpoints" / "4"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) > 10
    for file in files:
        before = file.read_bytes()
        harm(file)
        assert Checkpoints(workdir, create=False).find("latest") == 2, file
        assert "the checkpoint of step 4 is damaged (" in " ".join(capsys.readouterr().out.split()), file
        with pytest.raises(InputError, match=r"--checkpoint: in .* step 4 is damaged"):
            Checkpoints(workdir, create=False).find("4")
        file.write_bytes(before)
    assert Checkpoints(workdir, create=False).find("latest") == 4
    assert not capsys.readouterr().out


def test_a_run_goes_on_from_the_older_one_and_sets_the_damaged_one_aside(workdir, capsys):
    flip(workdir / "checkpoints" / "4" / "metrics" / "metrics")
    (workdir / "checkpoints" / "5").mkdir()
    checkpoints = Checkpoints(workdir)
    assert checkpoints.latest() == 2
    np.testing.assert_array_equal(restore(checkpoints, 2).params["w"], make(step=2).params["w"])
    assert checkpoints.steps() == [2, 4, 5]  # Nothing is moved before the run has started.
    checkpoints.start_saving()
    checkpoints.save(make(step=3), 3, None)
    checkpoints.wait()
    checkpoints.close()
    out = " ".join(capsys.readouterr().out.split())
    for step in (4, 5):
        assert f"the checkpoint of step {step} is damaged" in out
        assert (workdir / "damaged" / str(step)).is_dir()
    assert Checkpoints(workdir).steps() == [2, 3]
    assert Checkpoints(workdir).latest() == 3


def test_a_copy_under_another_number_is_not_that_step(workdir, capsys):
    shutil.copytree(workdir / "checkpoints" / "4", workdir / "checkpoints" / "999")
    assert Checkpoints(workdir).latest() == 4
    assert "step 999 is damaged (it is a copy of step 4)" in " ".join(capsys.readouterr().out.split())


def test_folders_with_other_numbers_are_no_checkpoints(workdir):
    for name in ("007", "٤", "-8", "9.5", "12a"):
        (workdir / "checkpoints" / name).mkdir()
    assert Checkpoints(workdir).steps() == [2, 4]
    checkpoints = Checkpoints(workdir)
    checkpoints.start_saving()
    checkpoints.save(make(step=6), 6, None)
    checkpoints.close()
    assert Checkpoints(workdir).steps() == [2, 6]


def test_checkpoints_may_lie_elsewhere(workdir, tmp_path, capsys):
    """In a folder that a link leads to; a damaged one is moved to the run's own folder."""
    (workdir / "checkpoints").rename(tmp_path / "large")
    (workdir / "checkpoints").symlink_to(tmp_path / "large")
    flip(tmp_path / "large" / "4" / "metrics" / "metrics")
    checkpoints = Checkpoints(workdir)
    assert checkpoints.latest() == 2
    checkpoints.start_saving()
    checkpoints.save(make(step=3), 3, None)
    checkpoints.close()
    assert Checkpoints(workdir).steps() == [2, 3] and (workdir / "damaged" / "4").is_dir()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_what_a_disk_refuses_is_one_line(tmp_path, number):
    """Orbax passes such errors on as the text of others."""
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(OSError, match=os.strerror(number)) as found, checkpoints._saving():
        raise ValueError(f"Error writing part: [{os.strerror(number)}] and much more")
    assert (found.value.errno, found.value.filename) == (number, str(tmp_path / "checkpoints"))
    with pytest.raises(ValueError, match="a mistake"), checkpoints._saving():
        raise ValueError("a mistake")


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_not_there(workdir, monkeypatch):
    """Whatever Orbax raises, and although its folder may still be there; another mistake stays what it is."""

    def read(*_, **__):
        raise Exception("Encountered error while reading array index")

    monkeypatch.setattr(ocp.Checkpointer, "restore", read)
    checkpoints = Checkpoints(workdir)
    with pytest.raises(Exception, match="Encountered error"):
        restore(checkpoints, 4)
    next(path for path in (workdir / "checkpoints" / "4" / "default").rglob("d/*")).unlink()
    with pytest.raises(FileNotFoundError, match="checkpoints/4"):
        restore(checkpoints, 4)


def test_no_checkpoint_that_is_whole(workdir):
    for step in (2, 4):
        (workdir / "checkpoints" / str(step) / "default" / "manifest.ocdbt").unlink()
    with pytest.raises(
        InputError, match=r"no checkpoint in .* is whole: step 2 is damaged .* step 4 is damaged"
    ):
        Checkpoints(workdir).find("latest")


def test_a_save_that_is_killed_before_its_list_does_not_count(tmp_path, monkeypatch):
    def killed(folder: Path) -> None:
        raise OSError("killed")

    monkeypatch.setattr(checksums, "write_list", killed)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.start_saving()
    checkpoints.save(make(step=6), 6, None)
    with pytest.raises(OSError, match="killed"):
        checkpoints.wait()
    assert Checkpoints(tmp_path).steps() == []
    monkeypatch.undo()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.start_saving()
    checkpoints.save(make(step=6), 6, None)
    checkpoints.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["6"]
    assert Checkpoints(tmp_path).latest() == 6
