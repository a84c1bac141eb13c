"""Runs that no device of this machine can hold are refused before anything is made."""

import pytest
from conftest import TINY, load_config

from crate_jax import InputError
from crate_jax.training import memory
from crate_jax.training.starting import start_run


@pytest.mark.parametrize(
    "change",
    [
        {"model.dim": 10_000_000},
        {"model.depth": 2_000_000_000},
        {"batch_size": 10**9},
        {"data.image_size": 10**6},
    ],
)
def test_sizes_beyond_the_memory(change, tmp_path):
    with pytest.raises(
        InputError, match=r"need more than [\d.]+ \wiB of a device that has [\d.]+ \wiB; accepted: "
    ):
        start_run(load_config({**TINY, **change}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_a_run_needs_is_its_parameters_their_gradients_and_a_batch(tmp_path, monkeypatch):
    run = start_run(load_config({**TINY, "ema_decay": 0.9, "batch_size": 10}), tmp_path)
    count = sum(leaf.size for leaf in _leaves(run.model.abstract_params))
    needed = 3 * 4 * count + 10 * (8 * 8 + 4)
    monkeypatch.setattr(memory, "available", lambda devices: needed)
    memory.check(run)
    monkeypatch.setattr(memory, "available", lambda devices: needed - 1)
    with pytest.raises(InputError, match=f"config: {count:,} parameters and batches of 10 need"):
        memory.check(run)
    monkeypatch.setattr(memory, "available", lambda devices: None)
    memory.check(run)


def test_a_container_has_what_it_is_given(tmp_path, monkeypatch):
    import jax

    whole = memory.available(jax.local_devices())
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "memory.max")
    for text, expected in (("max\n", whole), ("1000000\n", 1_000_000 // len(jax.local_devices()))):
        memory.CGROUP.write_text(text)
        assert memory.available(jax.local_devices()) <= whole
        if text != "max\n":
            assert memory.available(jax.local_devices()) == expected


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)
