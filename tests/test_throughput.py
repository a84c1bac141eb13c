"""The command that measures input pipeline and steps."""

import pytest
from conftest import TINY

from crate_jax import InputError, throughput


@pytest.fixture
def flags(tmp_path):
    changes = [f"--config.{key}={value}" for key, value in TINY.items()]
    return ["throughput", "--config=configs/base.py", f"--workdir={tmp_path / 'run'}", *changes]


def test_it_trains_nothing_and_leaves_nothing(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("crate_jax.training.throughput.SECONDS", 0.01)
    throughput.main(flags)
    assert not (tmp_path / "run").exists()
    out = capsys.readouterr().out
    for name in ("pipeline alone", "step alone", "together", "waiting for data"):
        assert name in out


def test_it_is_for_one_process(flags, monkeypatch):
    monkeypatch.setattr("crate_jax.training.throughput.processes.several", lambda: True)
    with pytest.raises(InputError, match=r"throughput: found \d+ processes; accepted: one"):
        throughput.main(flags)


def test_it_is_no_longer_a_setting(flags):
    with pytest.raises(InputError, match=r"unknown key data\.benchmark"):
        throughput.main([*flags, "--config.data.benchmark"])
