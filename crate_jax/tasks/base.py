"""What a task is, and what tasks share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from crate_jax.runs.config import Config
from crate_jax.tasks import augment
from crate_jax.tasks.tokenizer import ValueMeaning

# What one step looks at: names → arrays `[b, …]`, such as "image" and "label"; in evaluation also "index" and "mask".
Batch = dict[str, jax.Array]
# A model with its parameters bound: `apply(inputs, train=, key=, trace=) -> (output, trace)`.
Apply = Callable[..., tuple[Any, Any]]
# A metric carries its own denominator: name → (sum, weight). A weight of None marks a count, which is not divided.
Metrics = dict[str, tuple[jax.Array, jax.Array | None]]


class Task(NamedTuple):
    """What a model is trained to do. A task only computes; it draws, prints and writes nothing.

    `inputs(batch)` is what the model is called with (normalised on the device: pixels cross the bus as bytes).
    `loss(apply, batch, key)` returns `(loss, metrics)`, scalars averaged over the batch.
    `evaluate(apply, batch)` returns `Metrics` of the examples whose `mask` is 1: over a whole split, sums and weights are
    added up and divided once. "loss" must be among them; the number of examples is counted by the evaluation step.
    With `teacher` the loss is called with one more argument, `teacher=`: the model with the averaged parameters.
    """

    inputs: Callable[[Batch], jax.Array]
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    evaluate: Callable[[Apply, Batch], Metrics]
    teacher: bool = False


MakeTask = Callable[[Config, ValueMeaning], Task]


def uses(*settings: str) -> Callable[[MakeTask], MakeTask]:
    """Declare settings, such as "data.mixup", that a task looks at and others may not: for those others they must be 0."""

    def mark(make: MakeTask) -> MakeTask:
        make.settings = settings
        return make

    return mark


def masked_mean(mask: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum of `values` `[b]` over the examples whose `mask` `[b]` is 1, and how many those are."""
    return jnp.sum(mask * values), jnp.sum(mask)


def normalised_images(config: Config, meaning: ValueMeaning) -> Callable[[Batch], jax.Array]:
    """`inputs(batch)` of a model of images: pixels scaled to [0, 1], then by `data.mean` and `data.std`."""
    mean, std = jnp.asarray(config.data.mean), jnp.asarray(config.data.std)

    def inputs(batch: Batch) -> jax.Array:
        return augment.normalise(batch["image"], meaning.max_value, mean, std)

    return inputs


def fixed_keys(indices: jax.Array) -> jax.Array:
    """A key for each example `[b]` that depends on its place in the split and on nothing else."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), indices)
