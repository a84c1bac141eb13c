"""The layer-wise measurement: against its definition, with padding, and cheap to run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import models
from crate_jax.analysis import layerwise
from crate_jax.models.trace import readings
from crate_jax.parallel import sharding
from crate_jax.parallel.sharding import MeshConfig
from crate_jax.tasks.base import Task

CONFIG = models.CRATEConfig(
    image_size=8, patch_size=4, channels=1, num_classes=3, dim=16, depth=2, heads=2, head_dim=8
)


@pytest.fixture(scope="module")
def model():
    return models.create(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(0))


def released_rate(w: np.ndarray) -> np.ndarray:
    """Σ_k ½ logdet(I + p/(n·0.01) WᵀW) of unit tokens, `[b, k, n, p]` → `[b]`, in float64."""
    w = w.astype(np.float64)
    w /= np.linalg.norm(w, axis=-1, keepdims=True)
    n, p = w.shape[-2:]
    gram = np.swapaxes(w, -1, -2) @ w
    return 0.5 * np.linalg.slogdet(np.eye(p) + p / (n * 0.01) * gram)[1].sum(axis=-1)


def test_readings_are_what_the_tokens_say(model, params):
    images = jax.random.normal(jax.random.key(1), (5, 8, 8, 1))
    _, read = model.apply(params, images, trace=model.readings)
    _, trace = model.apply(params, images, trace=True)
    for layer in range(CONFIG.depth):
        for name, source in (("coding_rate_before", "subspace_in"), ("coding_rate", "subspace_out")):
            expected = released_rate(np.asarray(trace[source][layer]))
            np.testing.assert_allclose(read[name][layer], expected, rtol=1e-5)
        nonzero = np.mean(np.asarray(trace["ista_out"][layer]) != 0, axis=(1, 2))
        np.testing.assert_allclose(read["nonzero_fraction"][layer], nonzero, rtol=1e-6)


def test_one_factorisation_at_a_time(model, params):
    """Two that could run at once deadlock XLA's CPU pool on two cores (see `readings`)."""
    images = jnp.zeros((2, 8, 8, 1))
    _, trace = model.apply(params, images, trace=True)
    report = jax.tree.map(lambda leaf: leaf[0], trace)
    lines = jax.jit(readings).lower(report).as_text().splitlines()
    indents = [len(line) - len(line.lstrip()) for line in lines if "@lapack_spotrf_ffi" in line]
    # One outside of conditionals; the other waits in a branch for the first one's verdict.
    assert sorted(indent > 4 for indent in indents) == [False, True]


def test_padding_does_not_count(model, params):
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    task = Task(lambda batch: batch["image"], None, None)
    read = layerwise.make_reader(model, task, mesh)
    images = np.asarray(jax.random.normal(jax.random.key(2), (8, 8, 8, 1)))
    full = [{"image": images, "mask": np.ones(8, np.float32)}]
    split = [
        {"image": images[:6], "mask": np.ones(6, np.float32)},
        {"image": np.concatenate([images[6:], images[:4]]), "mask": np.float32([1, 1, 0, 0, 0, 0])},
    ]
    with jax.set_mesh(mesh):
        one, other = (layerwise.measure(read, params, batches, mesh) for batches in (full, split))
    for name in one:
        for statistic in ("mean", "std"):
            np.testing.assert_allclose(one[name][statistic], other[name][statistic], rtol=1e-5)
    assert set(layerwise.as_metrics(one)) == {
        f"layer/{layer:02d}/{name}" for layer in range(2) for name in one
    }
