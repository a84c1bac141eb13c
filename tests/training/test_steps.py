"""What is said of a training step that was not finite."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import pytest

from crate_jax.parallel.sharding import MeshConfig, make_mesh
from crate_jax.training import steps
from crate_jax.training.state import TrainState


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_first_layer_that_is_not_finite_is_named(accumulate):
    """Two layers of which the second overflows for one example, whichever slice it is in."""
    sizes = set()

    def apply(params, x, trace=None):
        sizes.add(x.shape[0])
        hidden = jnp.stack([x, x * params["scale"]])
        return (
            (jnp.mean(hidden[1], axis=-1), jax.vmap(lambda h: trace({"hidden": h}))(hidden))
            if trace
            else hidden[1]
        )

    model = SimpleNamespace(apply=apply)
    task = SimpleNamespace(
        teacher=False,
        inputs=lambda batch: batch["x"],
        loss=lambda apply, batch, key: (jnp.mean(apply(batch["x"]) ** 2), {}),
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])

    def where(x):
        params, key = {"scale": jnp.float32(1e30)}, jax.random.key(0)
        return steps.find_nonfinite(model, task, params, None, {"x": x}, key, mesh, accumulate=accumulate)

    fine = jnp.full((8, 3), 1e-30)
    assert where(fine) == "the gradient norm"
    for example in range(8):
        assert where(fine.at[example, 1].set(1e30)) == "layer 01 (hidden)"
    assert where(fine.at[2].set(1e-5)) == "the loss"
    assert sizes == {8 // accumulate}, "nothing is done on more than a slice"


def test_a_step_keeps_the_types_of_its_state_under_x64():
    """A metric in float64, as a mean of labels is there, is added up in float32 like all others."""
    config = SimpleNamespace(
        ema_decay=0.0, ema_decay_end=0.0, seed=0, accumulate=1, total_steps=10, batch_size=4
    )
    model = SimpleNamespace(apply=lambda params, x: x * params["scale"])

    def loss(apply, batch, key):
        value = jnp.mean(apply(batch["x"]) ** 2, dtype=jnp.float64)
        return value, {"accuracy": jnp.mean(batch["y"] == 1)}

    task = SimpleNamespace(teacher=False, loss=loss)
    tx = optax.sgd(0.1)
    with jax.enable_x64(True):
        params = {"scale": jnp.float32(2)}
        sums = {name: jnp.zeros((), jnp.float32) for name in (*steps.COMMON_METRICS, "accuracy")}
        state = TrainState(jnp.int32(0), params, tx.init(params), None, sums, jnp.bool_(False))
        step = jax.jit(steps.make_train_step(model, task, tx, config, log_steps=5, total_steps=10))
        batch = {"x": jnp.ones((4, 3), jnp.float32), "y": jnp.array([1, 1, 0, 1])}
        moved, _ = step(state, batch)
        again, _ = step(moved, batch)
    types = [jax.tree.map(lambda x: x.dtype, tree) for tree in (state, moved, again)]
    assert types[0] == types[1] == types[2]
    assert again.sums["accuracy"] == 1.5
