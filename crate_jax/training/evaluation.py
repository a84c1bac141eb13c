"""Evaluation over a whole split: every example counted once, padding masked."""

import collections
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from crate_jax.parallel.sharding import shard_batch


def evaluate(
    eval_step: Callable, params, batches: Iterable[dict[str, np.ndarray]], mesh: Mesh
) -> dict[str, float]:
    """The metrics of a task over all examples.

    Args:
      eval_step: `eval_step(params, batch)` returns a sum and a weight for each metric, see `steps.make_eval_step`.
      params: the model's parameters.
      batches: padded batches with a `mask`, this process's slices.
      mesh: where the step runs.
    Returns:
      for each metric its sum over its weight (0 where the weight is 0), or the sum itself where it has none; `count`, the
      number of examples, comes last.
    """
    sums: dict[str, float] = collections.defaultdict(float)
    weights: dict[str, float] = collections.defaultdict(float)
    for batch in batches:
        # Added up on the host in float64: exact counts for any size of split.
        for name, (total, weight) in jax.device_get(eval_step(params, shard_batch(batch, mesh))).items():
            sums[name] += float(total)
            if weight is not None:
                weights[name] += float(weight)
    values = {
        name: total / (weights[name] or 1.0) if name in weights else total for name, total in sums.items()
    }
    count = values.pop("count")
    return {**values, "count": count}
