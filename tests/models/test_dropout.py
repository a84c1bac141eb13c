"""Dropout of the token models: only while training, another draw for each key and layer, and the mean stays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crate_jax import InputError, models
from crate_jax.models.layers import Dropout

SHAPE = {"vocab_size": 5, "num_positions": 4, "dim": 8, "depth": 2, "heads": 2}
CONFIGS = {
    "igpt": models.IGPTConfig(**SHAPE, dropout=0.5),
    "crate_gpt": models.CRATEGPTConfig(**SHAPE, head_dim=4, dropout=0.5),
}
TOKENS = jnp.array([[0, 1, 2, 3], [4, 4, 0, 1]])


def test_the_mean_stays_and_the_share_is_right():
    x = jnp.ones((400, 100))
    dropped = np.asarray(Dropout(0.25, jax.random.key(0))(x))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    # 40,000 draws: five standard errors.
    assert abs((dropped == 0).mean() - 0.25) < 5 * (0.25 * 0.75 / 40_000) ** 0.5


def test_each_place_drops_other_entries():
    dropout, x = Dropout(0.5, jax.random.key(0)), jnp.ones((64,))
    draws = [dropout(x), dropout(x, 1), dropout.at(0)(x), dropout.at(1)(x)]
    assert len({tuple(np.asarray(draw)) for draw in draws}) == 4
    np.testing.assert_array_equal(dropout(x), dropout(x))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_drops_while_training_alone(family):
    config = CONFIGS[family]
    model, plain = models.create(config), models.create(dataclasses.replace(config, dropout=0.0))
    params = model.init(jax.random.key(0))
    # The output table starts at zero, and so would all logits.
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    apply = jax.jit(lambda key, train: model.apply(params, TOKENS, train=train, key=key)[0], static_argnums=1)
    one, same, other = (apply(jax.random.key(seed), True) for seed in (2, 2, 3))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    expected = jax.jit(lambda: plain.apply(params, TOKENS, train=True, key=jax.random.key(2))[0])()
    np.testing.assert_allclose(apply(jax.random.key(2), False), expected, rtol=1e-6)
    with pytest.raises(InputError, match=r"model.dropout: found 0.5 and no key"):
        model.apply(params, TOKENS, train=True)


@pytest.mark.parametrize(("family", "module"), [("igpt", models.IGPT), ("crate_gpt", models.CRATEGPT)])
def test_tokens_that_are_asked_for_are_dropped_from_too(family, module):
    """In every layer, the last one included, which is computed for them alone."""
    config = dataclasses.replace(CONFIGS[family], dtype="float32", attention_kernel="xla", scan=True)
    stack = module(config, rngs=nnx.Rngs(params=jax.random.key(0))).blocks
    x, dropout = jax.random.normal(jax.random.key(1), (2, 4, 8)), Dropout(0.5, jax.random.key(2))
    np.testing.assert_allclose(
        stack(x, wanted=4, dropout=dropout)[0], stack(x, dropout=dropout)[0], rtol=1e-6
    )
    np.testing.assert_allclose(stack(x, wanted=2)[0], stack(x)[0][:, :2], rtol=1e-6)
    assert np.abs(stack(x, wanted=4)[0] - stack(x, dropout=dropout)[0]).max() > 1e-2
