"""Image classification."""

import jax
import jax.numpy as jnp
import optax

from crate_jax import InputError
from crate_jax.runs.config import Config
from crate_jax.tasks import augment, regularizer
from crate_jax.tasks.base import Apply, Batch, Metrics, Task, masked_mean, normalised_images, uses
from crate_jax.tasks.tokenizer import ValueMeaning


@uses("data.mixup", "data.cutmix", "data.erase", *regularizer.SETTINGS)
def classify(config: Config, meaning: ValueMeaning) -> Task:
    """Image classification by cross-entropy, in nats, with label smoothing, mixing and erasing in training.

    Args:
      config: the run; `label_smoothing`, `regularizer` and `data`'s `mean`, `std`, `mixup`, `cutmix`, `erase` are used.
      meaning: what the values in a batch stand for.
    Raises:
      InputError: a model that has no classes.
    """
    layer_terms = regularizer.make_regularizer(config)
    data, num_classes = config.data, config.model.num_classes
    if not num_classes:
        raise InputError(
            f"task: classify needs classes, which model.family {config.model.family!r} does not have here; accepted: a "
            "model of images with model.num_classes above 0"
        )
    inputs = normalised_images(config, meaning)

    def loss(apply: Apply, batch: Batch, key: jax.Array):
        images, targets = inputs(batch), soft_targets(batch["label"], num_classes, config.label_smoothing)
        if data.erase:
            images = augment.random_erase(jax.random.fold_in(key, 1), images, data.erase)
        images, targets = augment.mix(
            jax.random.fold_in(key, 2), images, targets, mixup_alpha=data.mixup, cutmix_alpha=data.cutmix
        )
        trace = layer_terms.reading(jax.random.fold_in(key, 3))
        logits, layers = apply(images, train=True, key=key, trace=trace)
        loss, metrics = class_scores(logits, batch["label"], targets)
        extra, terms = layer_terms.total(layers)
        return loss + extra, {**metrics, **terms}

    def evaluate(apply: Apply, batch: Batch) -> Metrics:
        logits, _ = apply(inputs(batch))
        metrics = class_metrics(logits, batch["label"], batch["mask"])
        return metrics | real_metrics(logits, batch["real"], batch["mask"]) if "real" in batch else metrics

    return Task(inputs, loss, evaluate)


def soft_targets(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """The smoothed targets `[b, c]` of labels `[b]`: (1 − s) of the label and s / c of every class."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), smoothing)


def class_scores(logits: jax.Array, labels: jax.Array, targets: jax.Array):
    """Mean cross-entropy of logits `[b, c]` against targets `[b, c]`, and the accuracy on labels `[b]` as a metric."""
    nats = optax.losses.softmax_cross_entropy(logits, targets)
    return nats.mean(), {"accuracy": jnp.mean(logits.argmax(-1) == labels)}


def class_metrics(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Metrics:
    """Loss, accuracy and top-5 accuracy over the examples whose mask is 1."""
    nats = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    true_logit = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    rank = jnp.sum(logits > true_logit, axis=-1)
    return {
        "loss": masked_mean(mask, nats),
        "accuracy": masked_mean(mask, logits.argmax(-1) == labels),
        "top5": masked_mean(mask, rank < 5),
    }


def real_metrics(logits: jax.Array, classes: jax.Array, mask: jax.Array) -> Metrics:
    """How often the most likely class is one of those that the image shows, over the images that have such labels.

    Args:
      logits: `[b, c]`.
      classes: ReaL labels `[b, k]`, filled up with −1; an image may have none (see `data.real`).
      mask: `[b]`, 1 for the examples that count.
    """
    counted = mask * jnp.any(classes >= 0, axis=-1)
    right = jnp.any(logits.argmax(-1)[:, None] == classes, axis=-1)
    return {"real_accuracy": masked_mean(counted, right), "real_count": (jnp.sum(counted), None)}
