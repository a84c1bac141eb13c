"""Compression and sparsification by layer, measured on data: the experiment of CRATE's section 3.1."""

from collections.abc import Iterable
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from crate_jax.models import Model
from crate_jax.parallel.sharding import replicated, shard_batch
from crate_jax.tasks import Task

# The papers average over a thousand samples.
MAX_EXAMPLES = 1000

# reading → statistic ("mean", "std") → one number a layer
Measurement = dict[str, dict[str, list[float]]]


def make_reader(model: Model, task: Task, mesh: Mesh):
    """`read(params, batch)` returns `(readings, mask)`: each of the model's readings as `[depth, batch]`, and which
    examples count, on every process.
    """

    def read(params, batch):
        return model.apply(params, task.inputs(batch), trace=model.readings)[1], batch["mask"]

    return jax.jit(read, out_shardings=replicated(mesh))


def measure(read, params, batches: Iterable[dict[str, np.ndarray]], mesh: Mesh) -> Measurement:
    """Mean and standard deviation over examples of every reading of every layer.

    Args:
      read: from `make_reader`.
      batches: padded evaluation batches, of some thousand examples at most; those whose `mask` is 0 do not count.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        values, mask = jax.device_get(read(params, shard_batch(batch, mesh)))
        for name, value in values.items():
            parts.setdefault(name, []).append(value[:, mask > 0])
    joined = {name: np.concatenate(arrays, axis=1).astype(np.float64) for name, arrays in parts.items()}
    statistics = {"mean": partial(np.mean, axis=1), "std": partial(np.std, axis=1)}
    return {
        name: {key: function(values).tolist() for key, function in statistics.items()}
        for name, values in joined.items()
    }


def as_metrics(measurement: Measurement) -> dict[str, float]:
    """`{"layer/03/coding_rate": …}`, means only."""
    return {
        f"layer/{layer:02d}/{name}": value
        for name, statistics in measurement.items()
        for layer, value in enumerate(statistics["mean"])
    }
