"""Image classification."""

import jax
import jax.numpy as jnp
import optax

from crate_jax.training.config import Config
from crate_jax.training.tasks.base import Apply, Batch, Task
from crate_jax.training.tokenizer import Pixels


def classify(config: Config, pixels: Pixels) -> Task:
    """Image classification by cross-entropy, in nats, with label smoothing in training.

    Args:
      config: the run; `label_smoothing`, `data.mean` and `data.std` are used.
      pixels: what the values of the images mean.
    """
    mean, std = jnp.asarray(config.data.mean), jnp.asarray(config.data.std)

    def inputs(batch: Batch) -> jax.Array:
        return (batch["image"].astype(jnp.float32) / pixels.max_value - mean) / std

    def loss(apply: Apply, batch: Batch, key: jax.Array):
        logits, _ = apply(inputs(batch), train=True, key=key)
        return class_scores(logits, batch["label"], config.label_smoothing)

    def evaluate(apply: Apply, batch: Batch) -> dict[str, jax.Array]:
        logits, _ = apply(inputs(batch))
        return class_sums(logits, batch["label"], batch["mask"])

    return Task(inputs, loss, evaluate)


def class_scores(logits: jax.Array, labels: jax.Array, smoothing: float):
    """Mean cross-entropy of logits `[b, c]` against smoothed labels `[b]`, and the accuracy as a metric."""
    smoothed = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    nats = optax.losses.softmax_cross_entropy(logits, smoothed)
    return nats.mean(), {"accuracy": jnp.mean(logits.argmax(-1) == labels)}


def class_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums of loss, accuracy and top-5 accuracy over the examples whose mask is 1, and their number as `count`."""
    nats = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    true_logit = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    rank = jnp.sum(logits > true_logit, axis=-1)
    return {
        "loss": jnp.sum(mask * nats),
        "accuracy": jnp.sum(mask * (logits.argmax(-1) == labels)),
        "top5": jnp.sum(mask * (rank < 5)),
        "count": jnp.sum(mask),
    }
