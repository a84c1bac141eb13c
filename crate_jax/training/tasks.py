"""What a model is trained for. A task turns (model, batch, key) into a loss and metrics; the trainer knows no more."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from crate_jax import InputError
from crate_jax.training.config import Config

Batch = dict[str, jax.Array]
# A model with its parameters bound: `apply(inputs, train=, key=, trace=) -> (output, trace)`.
Apply = Callable[..., tuple[jax.Array, Any]]


class Task(NamedTuple):
    """The functions that define a task.

    `inputs(batch)` is what the model is called with (normalised on the device: pixels cross the bus as bytes).
    `loss(apply, batch, key)` returns `(loss, metrics)`, scalars averaged over the batch.
    `evaluate(apply, batch)` returns sums over the examples whose `mask` is 1, and their number as `count`.
    """

    inputs: Callable[[Batch], jax.Array]
    loss: Callable[[Apply, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    evaluate: Callable[[Apply, Batch], dict[str, jax.Array]]


def classify(config: Config, max_value: int) -> Task:
    """Image classification by cross-entropy, in nats, with label smoothing in training.

    Args:
      config: the run; `label_smoothing`, `data.mean` and `data.std` are used.
      max_value: the pixel value that means white.
    """
    mean, std = jnp.asarray(config.data.mean), jnp.asarray(config.data.std)

    def inputs(batch: Batch) -> jax.Array:
        return (batch["image"].astype(jnp.float32) / max_value - mean) / std

    def loss(apply: Apply, batch: Batch, key: jax.Array):
        logits, _ = apply(inputs(batch), train=True, key=key)
        labels = optax.smooth_labels(jax.nn.one_hot(batch["label"], logits.shape[-1]), config.label_smoothing)
        nats = optax.losses.softmax_cross_entropy(logits, labels)
        return nats.mean(), {"accuracy": jnp.mean(logits.argmax(-1) == batch["label"])}

    def evaluate(apply: Apply, batch: Batch) -> dict[str, jax.Array]:
        logits, _ = apply(inputs(batch))
        labels, mask = batch["label"], batch["mask"]
        nats = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        true_logit = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        rank = jnp.sum(logits > true_logit, axis=-1)
        return {
            "loss": jnp.sum(mask * nats),
            "accuracy": jnp.sum(mask * (logits.argmax(-1) == labels)),
            "top5": jnp.sum(mask * (rank < 5)),
            "count": jnp.sum(mask),
        }

    return Task(inputs, loss, evaluate)


TASKS = {"classify": classify}


def make_task(config: Config, max_value: int) -> Task:
    """The task that `config.task` names."""
    if config.task not in TASKS:
        raise InputError(f"task: found {config.task!r}; accepted: {', '.join(TASKS)}")
    return TASKS[config.task](config, max_value)
