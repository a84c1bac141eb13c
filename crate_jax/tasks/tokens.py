"""Next-token and masked-token prediction, and the former with classification (Chen et al. 2020)."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from crate_jax import InputError, models
from crate_jax.runs.config import Config
from crate_jax.tasks import regularizer
from crate_jax.tasks.base import Apply, Batch, Metrics, Task, fixed_keys, masked_mean, uses
from crate_jax.tasks.classify import class_metrics, class_scores, soft_targets
from crate_jax.tasks.tokenizer import ValueMeaning, make_tokenizer

MASK_PROBABILITY = 0.15

cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels


def autoregressive(config: Config, meaning: ValueMeaning) -> Task:
    """L_AR = −1/n Σ_t log p(x_t | x_<t), in nats per token; `bits_per_pixel`, `bits_per_byte`, … is L_AR / ln 2.

    Where the entropy of the data is known (`Tokens.floor`), the evaluation also has `excess`, the loss above that floor,
    and the loss at each position: `position/00`, …. Where the data have an answer (`Tokens.answer`), it has `answer_loss`,
    the mean nats per token of the answer, and `exact_match`, the share of examples in which every token of the answer is
    the likeliest one: greedy decoding then writes the right answer, and only then.
    """
    inputs = _token_inputs(config, meaning, causal=True, classes=False)

    def predict(apply: Apply, batch: Batch, **options) -> tuple[jax.Array, jax.Array]:
        """Nats of each token, and whether it was the likeliest; both `[b, n]`."""
        tokens = inputs(batch)
        logits, _ = apply(tokens, **options)
        return cross_entropy(logits, tokens), jnp.argmax(logits, axis=-1) == tokens

    def loss(apply: Apply, batch: Batch, key: jax.Array):
        return predict(apply, batch, train=True, key=key)[0].mean(axis=-1).mean(), {}

    def evaluate(apply: Apply, batch: Batch) -> Metrics:
        nats, right = predict(apply, batch)
        metrics = _nats_and_bits("loss", nats.mean(axis=-1), batch, meaning)
        return {**metrics, **_against_what_is_known(nats, right, batch["mask"], meaning)}

    return Task(inputs, loss, evaluate)


def bert(config: Config, meaning: ValueMeaning) -> Task:
    """L_BERT = −1/|M| Σ_{t∈M} log p(x_t | x_\\M), each token masked with probability 0.15, in nats per masked token.

    `bits_per_pixel`, `bits_per_byte`, … is L_BERT / ln 2. Masked tokens go in as zero embeddings. In evaluation an example's
    mask is a function of its place in the split alone.
    """
    inputs = _token_inputs(config, meaning, causal=False, classes=False)

    def nats(apply: Apply, tokens: jax.Array, masked: jax.Array, **options) -> jax.Array:
        logits, _ = apply(jnp.where(masked, models.MASKED, tokens), **options)
        weights = masked / jnp.maximum(jnp.sum(masked, axis=-1, keepdims=True), 1)
        return jnp.sum(weights * cross_entropy(logits, tokens), axis=-1)

    def loss(apply: Apply, batch: Batch, key: jax.Array):
        tokens = inputs(batch)
        mask_key, key = jax.random.split(key)
        masked = jax.random.bernoulli(mask_key, MASK_PROBABILITY, tokens.shape)
        return nats(apply, tokens, masked, train=True, key=key).mean(), {}

    def evaluate(apply: Apply, batch: Batch) -> Metrics:
        tokens = inputs(batch)
        draw = lambda key: jax.random.bernoulli(key, MASK_PROBABILITY, tokens.shape[1:])  # noqa: E731
        masked = jax.vmap(draw)(fixed_keys(batch["index"]))
        return _nats_and_bits("loss", nats(apply, tokens, masked), batch, meaning)

    return Task(inputs, loss, evaluate)


@uses(*regularizer.SETTINGS)
def joint(config: Config, meaning: ValueMeaning) -> Task:
    """L_GEN + L_CLF: next-pixel prediction plus classification from the mean of the last layer; for fine-tuning.

    Raises:
      InputError: text, or a model without a classification head.
    """
    if meaning.entry != "image":
        raise InputError(
            f"task: joint needs labels, which {meaning.kind} has not; accepted for {meaning.kind}: autoregressive, bert"
        )
    inputs = _token_inputs(config, meaning, causal=True, classes=True)
    layer_terms = regularizer.make_regularizer(config)

    def predict(apply: Apply, batch: Batch, **options):
        tokens = inputs(batch)
        (logits, class_logits), layers = apply(tokens, **options)
        return cross_entropy(logits, tokens).mean(axis=-1), class_logits, layers

    def loss(apply: Apply, batch: Batch, key: jax.Array):
        trace = layer_terms.reading(jax.random.fold_in(key, 3))
        nats, class_logits, layers = predict(apply, batch, train=True, key=key, trace=trace)
        targets = soft_targets(batch["label"], class_logits.shape[-1], config.label_smoothing)
        class_loss, metrics = class_scores(class_logits, batch["label"], targets)
        generative = nats.mean()
        extra, terms = layer_terms.total(layers)
        metrics = {"generative_loss": generative, "class_loss": class_loss, **metrics, **terms}
        return generative + class_loss + extra, metrics

    def evaluate(apply: Apply, batch: Batch) -> Metrics:
        nats, class_logits, _ = predict(apply, batch)
        generative = _nats_and_bits("generative_loss", nats, batch, meaning)
        classes = class_metrics(class_logits, batch["label"], batch["mask"])
        (nats_sum, count), (class_sum, _) = generative["generative_loss"], classes["loss"]
        return {**classes, **generative, "loss": (nats_sum + class_sum, count), "class_loss": classes["loss"]}

    return Task(inputs, loss, evaluate)


def _against_what_is_known(
    nats: jax.Array, right: jax.Array, mask: jax.Array, meaning: ValueMeaning
) -> Metrics:
    """What the metrics of data are whose floor or answer is known; `nats` and `right` are `[b, n]`."""
    metrics: Metrics = {}
    if meaning.floor is not None:
        floor = jnp.asarray(meaning.floor)
        metrics["excess"] = masked_mean(mask, (nats - floor).mean(axis=-1))
        for position in range(nats.shape[1]):
            metrics[f"position/{position:02d}"] = masked_mean(mask, nats[:, position])
    if meaning.answer is not None:
        metrics["answer_loss"] = masked_mean(mask, nats[:, meaning.answer :].mean(axis=-1))
        metrics["exact_match"] = masked_mean(mask, right[:, meaning.answer :].all(axis=-1))
    return metrics


def _nats_and_bits(name: str, nats: jax.Array, batch: Batch, meaning: ValueMeaning) -> Metrics:
    """The mean over examples of `nats` `[b]` per token, under `name` in nats and as bits per pixel or byte."""
    total, count = masked_mean(batch["mask"], nats)
    return {name: (total, count), f"bits_per_{meaning.unit}": (total / math.log(2), count)}


def _token_inputs(
    config: Config, meaning: ValueMeaning, *, causal: bool, classes: bool
) -> Callable[[Batch], jax.Array]:
    """`inputs(batch)` of a model of tokens, which is held to be causal or not, with classes or not."""
    model = config.model
    if not isinstance(model, models.TokenConfig):
        raise InputError(
            f"task: {config.task} predicts tokens, which model.family {model.family!r} does not; accepted: igpt, crate_gpt"
        )
    if model.causal != causal:
        raise InputError(f"model.causal: found {model.causal}; accepted for task {config.task}: {causal}")
    if bool(model.num_classes) != classes:
        accepted = "the number of classes" if classes else "0 (no classification head)"
        raise InputError(
            f"model.num_classes: found {model.num_classes}; accepted for task {config.task}: {accepted}"
        )
    tokenizer = make_tokenizer(meaning, model.vocab_size)
    return lambda batch: tokenizer.encode(batch[meaning.entry])
