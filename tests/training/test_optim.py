"""The optimisers: closed forms of a first step, what they keep, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import InputError
from crate_jax.runs.config import OptimizerConfig
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
    config = OptimizerConfig(name="adafactor", lr=0.1, weight_decay=0.5)
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

    def kept(**config):
        _, state = first_update(OptimizerConfig(**config))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / size

    assert 4 <= kept(name="lion") < 4.2
    assert 8 <= kept(name="adamw") < 8.2
    assert kept(name="adafactor") < 0.3
    assert 2 <= kept(name="lion", momentum_dtype="bfloat16") < 2.2
    assert 6 <= kept(name="adamw", momentum_dtype="bfloat16") < 6.2


@pytest.mark.parametrize("name", ["lion", "adamw"])
def test_a_first_step_does_not_depend_on_the_type_of_the_momentum(name):
    """The update is made from the new moment before it is rounded."""
    full, half = (
        first_update(OptimizerConfig(name=name, momentum_dtype=dtype))[0] for dtype in ("float32", "bfloat16")
    )
    for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(half), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-2)


def test_an_unknown_momentum_type():
    with pytest.raises(InputError, match="momentum_dtype: found 'int8'; accepted: float32, bfloat16"):
        first_update(OptimizerConfig(momentum_dtype="int8"))
