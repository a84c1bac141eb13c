"""The type of a task, and what it works on."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

Batch = dict[str, jax.Array]
# A model with its parameters bound: `apply(inputs, train=, key=, trace=) -> (output, trace)`.
Apply = Callable[..., tuple[Any, Any]]
# (the final evaluation, the test images, the folder of reports) → rows for the final table, name to text.
Report = Callable[[Mapping[str, float], Iterable[np.ndarray], Path], dict[str, str]]


class Task(NamedTuple):
    """The functions that define a task.

    `inputs(batch)` is what the model is called with (normalised on the device: pixels cross the bus as bytes).
    `loss(apply, batch, key)` returns `(loss, metrics)`, scalars averaged over the batch.
    `evaluate(apply, batch)` returns sums over the examples whose `mask` is 1, and their number as `count`.
    `report(values, images, folder)`, if the task has one, is called once when a run ends.
    """

    inputs: Callable[[Batch], jax.Array]
    loss: Callable[[Apply, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    evaluate: Callable[[Apply, Batch], dict[str, jax.Array]]
    report: Report | None = None
