"""A checkpoint and a state that is not the one it holds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crate_jax import InputError
from crate_jax.training.checkpoint import Checkpoints
from crate_jax.training.state import TrainState


def make(tx=None, *, ema: bool = False, metrics: tuple[str, ...] = ("loss",), step: int = 3) -> TrainState:
    params = {"w": jnp.arange(6.0).reshape(3, 2)}
    return TrainState(
        jnp.int32(step),
        params,
        (tx or optax.adam(1e-3)).init(params),
        params if ema else None,
        {name: jnp.float32(0) for name in metrics},
        jnp.bool_(False),
    )


def test_another_state_is_one_line(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.start_saving()
    checkpoints.save(make(), 3, None)
    checkpoints.wait()

    def restore(state):
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        return checkpoints.restore(shapes, 3)

    np.testing.assert_array_equal(restore(make()).params["w"], make().params["w"])
    others = (make(optax.sgd(1e-3)), make(ema=True), make(metrics=()), make(metrics=("loss", "accuracy")))
    for other in others:
        with pytest.raises(InputError, match=r"the checkpoint of step 3 in .* holds another state") as error:
            restore(other)
        assert "\n" not in str(error.value)
    checkpoints.close()


def test_checkpoints_by_name(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(InputError, match="holds no complete checkpoint yet"):
        checkpoints.find("latest")
    checkpoints.start_saving()
    checkpoints.save(make(step=1), 1, None)
    checkpoints.wait()
    with pytest.raises(InputError, match=r"--checkpoint: found best; accepted in .*: latest, 1$"):
        checkpoints.find("best")  # None was evaluated.
    for step, score in ((2, -0.9), (3, -1.5), (4, None)):
        checkpoints.save(make(step=step), step, score)
        checkpoints.wait()
    assert [checkpoints.find(which) for which in ("latest", "best", "2", "4")] == [4, 2, 2, 4]
    with pytest.raises(InputError, match=r"--checkpoint: found 3; accepted in .*: latest, best, 2, 4$"):
        checkpoints.find("3")
    checkpoints.close()
