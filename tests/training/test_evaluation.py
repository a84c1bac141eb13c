"""Means over a split: every metric over its own weight."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.parallel.sharding import MeshConfig, make_mesh
from crate_jax.training import evaluation, steps


def test_every_metric_has_its_own_denominator():
    """Loss over examples, a metric over those that have it, one over tokens, and a plain count; padding counts nowhere."""

    def evaluate(apply, batch):
        x, mask = apply(batch["x"]), batch["mask"]
        some = mask * (x > 2)
        return {
            "loss": (jnp.sum(mask * x), jnp.sum(mask)),
            "large": (jnp.sum(some * x), jnp.sum(some)),
            "per_token": (jnp.sum(mask * x), 10 * jnp.sum(mask)),
            "none": (jnp.sum(0 * x), jnp.sum(0 * x)),
            "found": (jnp.sum(some), None),
        }

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model = SimpleNamespace(apply=lambda params, x: params * x)
    eval_step = steps.make_eval_step(model, SimpleNamespace(evaluate=evaluate), mesh)
    batches = [
        {"x": np.float32([1, 2]), "mask": np.float32([1, 1])},
        {"x": np.float32([6, 100]), "mask": np.float32([1, 0])},
    ]
    values = evaluation.evaluate(eval_step, jnp.float32(1), batches, mesh)
    assert values == pytest.approx(
        {"loss": 3.0, "large": 6.0, "per_token": 0.3, "none": 0.0, "found": 1.0, "count": 3.0}
    )
    assert list(values)[-1] == "count"
