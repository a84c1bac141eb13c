"""Released checkpoints: there and back, and every way a file can be wrong."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

from crate_jax import InputError, models, weights

FIXTURE = Path(__file__).parents[1] / "fixtures" / "crate_official.npz"


@pytest.fixture(scope="module")
def released():
    with np.load(FIXTURE) as file:
        return {name.removeprefix("param/"): file[name] for name in file.files if name.startswith("param/")}


def test_there_and_back(released):
    config, params = weights.load(released, "crate", heads=4)
    assert (config.dim, config.depth, config.heads, config.head_dim) == (32, 2, 4, 8)
    assert (config.image_size, config.patch_size, config.channels, config.num_classes) == (32, 8, 3, 10)
    back = weights.export(params, "crate")
    assert back.keys() == released.keys()
    for name, value in released.items():
        np.testing.assert_array_equal(back[name], value)


def test_a_file_and_the_names_that_wrappers_make(released, tmp_path):
    path = tmp_path / "crate.npz"
    np.savez(path, **{f"module.{name}": value for name, value in released.items()})
    _, params = weights.load(path, "crate", heads=4)
    np.testing.assert_array_equal(params["class_token"], released["cls_token"][0, 0])


def test_all_that_is_wrong_is_said_at_once(released):
    broken = {**released, "surplus": np.zeros(3), "mlp_head.1.bias": np.zeros(7)}
    del broken["transformer.layers.1.1.norm.bias"]
    with pytest.raises(InputError) as error:
        weights.load(broken, "crate", heads=4)
    for part in ("missing transformer.layers.1.1.norm.bias", "extra surplus", "misshapen mlp_head.1.bias"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("family", "heads", "message"),
    [
        ("crete", 4, "family: found 'crete'; accepted: crate"),
        ("crate", 5, "heads: found 5; accepted: a divisor of 32"),
        ("crate", 0, "heads: found 0; accepted: 1 or more"),
    ],
)
def test_names_and_numbers(released, family, heads, message):
    with pytest.raises(InputError, match=message):
        weights.load(released, family, heads=heads)


def test_a_mapping_of_something_else():
    with pytest.raises(
        InputError, match=r"crate checkpoint: no entry 'transformer.layers.0.0.fn.qkv.weight'; found a, b"
    ):
        weights.load({"a": np.zeros(1), "b": np.zeros(1)}, "crate", heads=4)


@pytest.mark.parametrize("name", ["to_patch_embedding.2.weight", "pos_embedding", "mlp_head.1.weight"])
def test_an_array_of_another_rank(released, name):
    with pytest.raises(
        InputError, match=r"crate checkpoint does not fit: shapes of other ranks; found pos_embedding"
    ):
        weights.load({**released, name: np.zeros(())}, "crate", heads=4)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"learn_steps": True}, "no place for blocks/blocks/compression_step"),
        ({"output": "tied"}, "no blocks/blocks/mssa/output here, which it needs"),
        ({"pool": "mean"}, "no class_token here"),
        ({"head_hidden": 5}, "no place for head/mlp_in"),
    ],
)
def test_what_the_released_form_does_not_have(released, changes, problem):
    config, _ = weights.load(released, "crate", heads=4)
    params = models.create(dataclasses.replace(config, **changes)).abstract_params
    with pytest.raises(InputError, match=r"the released form of crate does not fit: ") as error:
        weights.export(params, "crate")
    assert problem in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"checkpoint: no file .*none.npz"):
        weights.load(tmp_path / "none.npz", "crate", heads=4)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(FIXTURE.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"cut.npz cannot be read"):
        weights.load(cut, "crate", heads=4)


def test_pickled_objects_are_never_run(tmp_path):
    path = tmp_path / "evil.npz"
    np.savez(path, a=np.array([Evil()], dtype=object))
    with pytest.raises(InputError, match=r"evil.npz cannot be read"):
        weights.load(path, "crate", heads=4)
    assert not Evil.ran


class Evil:
    """Unpickling it would be noticed."""

    ran = False

    def __reduce__(self):
        return (_run, ())


def _run():
    Evil.ran = True
    return pickle.dumps(None)
