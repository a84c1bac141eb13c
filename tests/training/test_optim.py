"""The optimisers: closed forms of a first step, what they keep, schedules, and what they refuse."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import metrics

from crate_jax import InputError, models, train
from crate_jax.runs import optimizers
from crate_jax.runs.config import from_config_dict, to_config_dict, with_optimizer
from crate_jax.runs.optimizers import OPTIMIZERS, Adafactor, AdamW, Lion, OptimizerConfig
from crate_jax.settings import setting
from crate_jax.training import optim

PARAMS = {"kernel": jnp.linspace(-1.0, 1.0, 64 * 32).reshape(64, 32), "bias": jnp.ones(8)}
GRADS = {
    "kernel": jnp.cos(jnp.arange(64.0 * 32)).reshape(64, 32),
    "bias": jnp.asarray(np.full(8, 2.0, np.float32)),
}


def first_update(config: OptimizerConfig):
    tx = optim.make_optimizer(config, lambda step: config.lr)
    state = tx.init(PARAMS)
    return tx.update(GRADS, state, PARAMS)


def test_adafactor_by_hand():
    """u = g / √(r cᵀ / mean r) with r, c the row and column means of g², clipped to RMS 1; then decay and −lr."""
    config = Adafactor(lr=0.1, weight_decay=0.5)
    updates, _ = first_update(config)
    g = np.asarray(GRADS["kernel"], np.float64)
    rows, columns = (g**2).mean(1, keepdims=True), (g**2).mean(0, keepdims=True)
    u = g / np.sqrt(rows * columns / (g**2).mean())
    u /= max(1.0, np.sqrt((u**2).mean()))
    expected = -0.1 * (u + 0.5 * np.asarray(PARAMS["kernel"], np.float64))
    np.testing.assert_allclose(updates["kernel"], expected, rtol=2e-5, atol=1e-7)
    # A vector is not factored and the bias is not decayed: g/√g² = 1.
    np.testing.assert_allclose(updates["bias"], -0.1 * np.ones(8), rtol=1e-5)


def test_what_each_keeps_for_a_parameter():
    size = PARAMS["kernel"].size

    def kept(config):
        _, state = first_update(config)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / size

    assert 4 <= kept(Lion()) < 4.2
    assert 8 <= kept(AdamW()) < 8.2
    assert kept(Adafactor()) < 0.3
    assert 2 <= kept(Lion(momentum_dtype="bfloat16")) < 2.2
    assert 6 <= kept(AdamW(momentum_dtype="bfloat16")) < 6.2


@pytest.mark.parametrize("name", ["lion", "adamw"])
def test_a_first_step_does_not_depend_on_the_type_of_the_momentum(name):
    """The update is made from the new moment before it is rounded."""
    full, half = (
        first_update(OPTIMIZERS[name](momentum_dtype=dtype))[0] for dtype in ("float32", "bfloat16")
    )
    for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(half), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-2)


def test_an_unknown_momentum_type():
    with pytest.raises(InputError, match="momentum_dtype: found 'int8'; accepted: float32, bfloat16"):
        first_update(Lion(momentum_dtype="int8"))


def rates(config: OptimizerConfig, **lengths) -> np.ndarray:
    schedule = optim.make_schedule(config, **lengths)
    return np.asarray([schedule(step) for step in range(lengths["total_steps"] + 1)])


def test_a_rate_starts_and_ends_where_it_is_said_to():
    config = Lion(lr=1.0, start_lr=0.1, end_lr=0.2)
    found = rates(config, warmup_steps=4, total_steps=20)
    warmup = [0.1 + 0.9 * step / 4 for step in range(4)]
    cosine = [0.2 + 0.8 * (1 + math.cos(math.pi * step / 16)) / 2 for step in range(17)]
    np.testing.assert_allclose(found, warmup + cosine, rtol=1e-6)
    # As it always was where nothing is said: from zero to zero, and without a warm-up from the top.
    assert rates(Lion(lr=1.0), warmup_steps=4, total_steps=20)[[0, 4, 20]].tolist() == [0, 1, 0]
    assert rates(Lion(lr=1.0), warmup_steps=0, total_steps=20)[0] == 1


def test_a_rate_by_epochs():
    """min((e + 1)/4, cosine of e/E), as CRATE's authors step it: a warm-up of three epochs that starts at lr/4."""
    config = Lion(lr=1.0, start_lr=0.25, schedule="epochs")
    found = rates(config, warmup_steps=15, total_steps=50, steps_per_epoch=5)
    expected = [min((e + 1) / 4, (1 + math.cos(math.pi * e / 10)) / 2) for e in range(10) for _ in range(5)]
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("config", "lengths", "message"),
    [
        (Lion(), (20, 20), "warmup: 20 steps; accepted: fewer than the 20 of the whole run"),
        (Lion(start_lr=1e-5), (0, 20), "optimizer.start_lr: found 1e-05 without a warm-up"),
    ],
)
def test_schedules_that_are_refused(config, lengths, message):
    with pytest.raises(InputError, match=message):
        optim.make_schedule(config, warmup_steps=lengths[0], total_steps=lengths[1])


def test_what_is_decayed():
    model = models.create(
        models.CRATEConfig(image_size=8, patch_size=4, channels=1, num_classes=10, dim=12, depth=2, heads=2)
    )

    def decayed(which):
        mask = optim.decay_mask(model.abstract_params, which)
        leaves = jax.tree_util.tree_leaves_with_path(mask)
        return {jax.tree_util.keystr(path[-1:], simple=True) for path, yes in leaves if yes}

    matrices = {"bases", "output", "dictionary", "kernel"}
    assert decayed("matrices") == matrices
    assert decayed("matrices but dictionaries") == matrices - {"dictionary"}
    assert decayed("matrices and tokens") == matrices | {"position_embedding", "class_token"}
    assert decayed("all") == matrices | {"position_embedding", "class_token", "scale", "bias"}
    assert not any(jax.tree.leaves(optim.decay_mask({"mssa": {"fixed_output": jnp.ones((2, 2))}}, "all")))
    with pytest.raises(InputError, match=r"optimizer.decay: found 'none'; accepted: matrices, "):
        first_update(Lion(decay="none"))


def test_weight_decay_that_grows():
    """One step of SGD with zero gradients shrinks a matrix by lr times the decay of that step, 0.1 to 0.3 along a cosine."""
    config = optimizers.SGD(lr=0.5, weight_decay=0.1, weight_decay_end=0.3)
    tx = optim.make_optimizer(config, lambda step: config.lr, total_steps=4)
    state, zeros = tx.init(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
    for decay in (0.1, 0.2 - 0.1 * math.sqrt(0.5), 0.2, 0.2 + 0.1 * math.sqrt(0.5)):
        updates, state = tx.update(zeros, state, PARAMS)
        np.testing.assert_allclose(updates["kernel"], -0.5 * decay * PARAMS["kernel"], rtol=1e-5)


def test_each_parameter_is_clipped_on_its_own():
    """A layer of a stack is a parameter: the second one's gradient of norm 5 does not touch the first one's of norm 1."""
    grads = {
        "blocks": {"blocks": {"kernel": jnp.asarray([[[0.6, 0.8]], [[3.0, 4.0]]])}},
        "head": jnp.full(4, 3.0),
    }
    clip = optim.clip_by_parameter_norm(2.0)
    clipped, _ = clip.update(grads, clip.init(grads))
    np.testing.assert_allclose(clipped["blocks"]["blocks"]["kernel"], [[[0.6, 0.8]], [[1.2, 1.6]]], rtol=1e-6)
    np.testing.assert_allclose(clipped["head"], np.full(4, 1.0), rtol=1e-6)
    config = optimizers.SGD(lr=1.0, weight_decay=0.0, clip_parameter_norm=2.0)
    tx = optim.make_optimizer(config, lambda step: config.lr)
    updates, _ = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_allclose(updates["head"], np.full(4, -1.0), rtol=1e-6)


def test_a_setting_that_an_optimiser_does_not_have():
    values = to_config_dict(optimizers.SGD()).to_dict()
    assert set(values) == {field.name for field in dataclasses.fields(OptimizerConfig)}
    with pytest.raises(InputError, match=r"unknown key optimizer.b1; accepted: optimizer.name, optimizer.lr"):
        from_config_dict({"optimizer": {"name": "sgd", "b1": 0.9}})
    with pytest.raises(
        InputError, match=r"unknown key optimizer.momentum_type; did you mean optimizer.momentum_dtype"
    ):
        from_config_dict({"optimizer": {"name": "adamw", "momentum_type": "bfloat16"}})
    with pytest.raises(
        InputError, match=r"optimizer.name: found 'adam'; accepted: lion, adamw, adafactor, sgd"
    ):
        from_config_dict({"optimizer": {"name": "adam"}})


def test_another_optimiser_on_the_command_line(tiny_config):
    """It keeps what all optimisers have; its own settings are its defaults, and may be set."""
    for arguments in (["--config.optimizer.name=adamw"], ["--seed=1", "--config.optimizer.name", "adamw"]):
        values = to_config_dict(tiny_config)
        with_optimizer(values, arguments)
        lion = tiny_config.optimizer
        assert from_config_dict(values).optimizer == AdamW(
            lr=lion.lr, weight_decay=lion.weight_decay, clip_norm=lion.clip_norm
        )


def test_the_optimiser_that_it_is_already():
    assert optimizers.replace(AdamW(b2=0.95), "adamw", lr=1.0) == AdamW(b2=0.95, lr=1.0)


@dataclasses.dataclass(frozen=True)
class Signs(OptimizerConfig):
    """The optimiser of docs/extending.md: the sign of the gradient, times `size`."""

    name: str = "signs"
    size: float = setting(1.0, "Size of an entry of the update.", above=0)

    def transformation(self, schedule, decay):
        return optax.chain(
            optax.stateless(lambda grads, _: jax.tree.map(lambda g: self.size * jnp.sign(g), grads)),
            optax.add_decayed_weights(**decay),
            optax.scale_by_learning_rate(schedule),
        )


def test_an_optimiser_is_a_class_and_a_row(monkeypatch, tmp_path, tiny_flags):
    monkeypatch.setitem(optimizers.OPTIMIZERS, "signs", Signs)
    flags = ["--config.optimizer.name=signs", "--config.optimizer.size=2", "--config.total_steps=2"]
    flags += ["--config.log_steps=1", "--config.warmup_steps=0"]
    with pytest.raises(InputError, match=r"optimizer.size: found -1.0; accepted: a number above 0"):
        train.main(["train", *tiny_flags, f"--workdir={tmp_path}", *flags, "--config.optimizer.size=-1"])
    train.main(["train", "--sections=loss", *tiny_flags, f"--workdir={tmp_path}", *flags])
    assert [line["step"] for line in metrics(tmp_path) if "train/loss" in line] == [1, 2]
    with pytest.raises(InputError, match=r"unknown key optimizer.b1"):
        train.main(["train", *tiny_flags, f"--workdir={tmp_path}", *flags, "--config.optimizer.b1=0.5"])
