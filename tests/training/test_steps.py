"""What is said of a training step that was not finite."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from crate_jax.parallel.sharding import MeshConfig, make_mesh
from crate_jax.training import steps


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
