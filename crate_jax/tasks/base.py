"""The type of a task, and what it works on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from crate_jax.data.sources import Source
from crate_jax.runs.config import Config
from crate_jax.tasks import augment
from crate_jax.tasks.tokenizer import Pixels

Batch = dict[str, jax.Array]
# A model with its parameters bound: `apply(inputs, train=, key=, trace=) -> (output, trace)`.
Apply = Callable[..., tuple[Any, Any]]
# (the final evaluation, or the model; the test examples, the folder of reports) → rows for the final table, name to text.
Report = Callable[[Mapping[str, float], Source, Path], dict[str, str]]
Show = Callable[[Apply, Source, Path], dict[str, str]]


class Task(NamedTuple):
    """The functions that define a task.

    `inputs(batch)` is what the model is called with (normalised on the device: pixels cross the bus as bytes).
    `loss(apply, batch, key)` returns `(loss, metrics)`, scalars averaged over the batch.
    `evaluate(apply, batch)` returns sums over the examples whose `mask` is 1, and their number as `count`.
    With `teacher` the loss is called with one more argument, `teacher=`: the model with the averaged parameters.
    `report(values, source, folder)` and `show(apply, source, folder)`, where the task has them, are called once when a run
    ends; only for the latter are the parameters brought to one device.
    """

    inputs: Callable[[Batch], jax.Array]
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    evaluate: Callable[[Apply, Batch], dict[str, jax.Array]]
    report: Report | None = None
    show: Show | None = None
    teacher: bool = False


def normalised_images(config: Config, pixels: Pixels) -> Callable[[Batch], jax.Array]:
    """`inputs(batch)` of a model of images: pixels scaled to [0, 1], then by `data.mean` and `data.std`."""
    mean, std = jnp.asarray(config.data.mean), jnp.asarray(config.data.std)

    def inputs(batch: Batch) -> jax.Array:
        return augment.normalise(batch["image"], pixels.max_value, mean, std)

    return inputs


def fixed_keys(indices: jax.Array) -> jax.Array:
    """A key for each example `[b]` that depends on its place in the split and on nothing else."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), indices)
