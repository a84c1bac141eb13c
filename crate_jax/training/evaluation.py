"""Evaluation over a whole split: every example counted once, padding masked."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from crate_jax.parallel.sharding import shard_batch


def evaluate(
    eval_step: Callable, params, batches: Iterable[dict[str, np.ndarray]], mesh: Mesh
) -> dict[str, float]:
    """Means over all examples.

    Args:
      eval_step: `eval_step(params, batch)` returns sums over unmasked examples and their number as `count`.
      batches: padded batches with a `mask`, this process's slices.
    Returns:
      a mean for each metric, and `count`; with ReaL labels `real_accuracy` over the `real_count` images that have any.
    """
    totals: dict[str, float] = {}
    for batch in batches:
        sums = jax.device_get(eval_step(params, shard_batch(batch, mesh)))
        # Added up on the host in float64: exact counts for any size of split.
        totals = {name: totals.get(name, 0.0) + float(value) for name, value in sums.items()}
    count = totals.pop("count")
    real = {}
    if "real_count" in totals:  # Some images have no such label; see `classify.real_sums`.
        real["real_count"] = totals.pop("real_count")
        real["real_accuracy"] = totals.pop("real_right") / max(1.0, real["real_count"])
    return {**{name: value / count for name, value in totals.items()}, **real, "count": count}
