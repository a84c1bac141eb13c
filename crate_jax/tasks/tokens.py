"""Next-token and masked-token prediction of pixels and of text, and the former with classification (Chen et al. 2020)."""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from crate_jax import InputError, models
from crate_jax.compression import baselines
from crate_jax.data.sources import Source
from crate_jax.runs.config import Config
from crate_jax.runs.console import wide_table
from crate_jax.runs.metrics import write_atomically
from crate_jax.tasks.base import Apply, Batch, Task, fixed_keys
from crate_jax.tasks.classify import class_scores, class_sums, soft_targets
from crate_jax.tasks.regularizer import make_regularizer
from crate_jax.tasks.tokenizer import Pixels, Tokenizer, make_tokenizer

MASK_PROBABILITY = 0.15
# The final report looks at no more tokens, of examples spread evenly over the split: LZMA is slow.
REPORTED = 2**24

cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels


def autoregressive(config: Config, pixels: Pixels) -> Task:
    """L_AR = −1/n Σ_t log p(x_t | x_<t), in nats a token; `bits_per_pixel` or `bits_per_byte` is L_AR / ln 2."""
    tokenizer = _tokenizer(config, pixels, causal=True, classes=False)
    inputs = _inputs(tokenizer)

    def nats(apply: Apply, batch: Batch, **options) -> jax.Array:
        tokens = inputs(batch)
        logits, _ = apply(tokens, **options)
        return cross_entropy(logits, tokens).mean(axis=-1)

    def loss(apply: Apply, batch: Batch, key: jax.Array):
        return nats(apply, batch, train=True, key=key).mean(), {}

    def evaluate(apply: Apply, batch: Batch) -> dict[str, jax.Array]:
        total = jnp.sum(batch["mask"] * nats(apply, batch))
        bits = {f"bits_per_{pixels.unit}": total / math.log(2)}
        return {"loss": total, **bits, "count": jnp.sum(batch["mask"])}

    return Task(inputs, loss, evaluate, partial(_report_code_length, tokenizer, pixels, "eval/loss"))


def bert(config: Config, pixels: Pixels) -> Task:
    """L_BERT = −1/|M| Σ_{t∈M} log p(x_t | x_\\M), each token masked with probability 0.15, in nats a masked token.

    `bits_per_pixel` or `bits_per_byte` is L_BERT / ln 2. Masked tokens go in as zero embeddings. In evaluation an example's
    mask is a function of its place in the split alone.
    """
    tokenizer = _tokenizer(config, pixels, causal=False, classes=False)
    inputs = _inputs(tokenizer)

    def nats(apply: Apply, tokens: jax.Array, masked: jax.Array, **options) -> jax.Array:
        logits, _ = apply(jnp.where(masked, models.MASKED, tokens), **options)
        weights = masked / jnp.maximum(jnp.sum(masked, axis=-1, keepdims=True), 1)
        return jnp.sum(weights * cross_entropy(logits, tokens), axis=-1)

    def loss(apply: Apply, batch: Batch, key: jax.Array):
        tokens = inputs(batch)
        mask_key, key = jax.random.split(key)
        masked = jax.random.bernoulli(mask_key, MASK_PROBABILITY, tokens.shape)
        return nats(apply, tokens, masked, train=True, key=key).mean(), {}

    def evaluate(apply: Apply, batch: Batch) -> dict[str, jax.Array]:
        tokens = inputs(batch)
        draw = lambda key: jax.random.bernoulli(key, MASK_PROBABILITY, tokens.shape[1:])  # noqa: E731
        masked = jax.vmap(draw)(fixed_keys(batch["index"]))
        total = jnp.sum(batch["mask"] * nats(apply, tokens, masked))
        bits = {f"bits_per_{pixels.unit}": total / math.log(2)}
        return {"loss": total, **bits, "count": jnp.sum(batch["mask"])}

    return Task(inputs, loss, evaluate, partial(_report_masked, tokenizer, pixels))


def joint(config: Config, pixels: Pixels) -> Task:
    """L_GEN + L_CLF: next-pixel prediction plus classification from the mean of the last layer; for fine-tuning.

    Raises:
      InputError: text, or a model without a classification head.
    """
    if pixels.text:
        raise InputError(
            "task: joint needs labels, which text has not; accepted for text: autoregressive, bert"
        )
    tokenizer, regularizer = _tokenizer(config, pixels, causal=True, classes=True), make_regularizer(config)
    inputs = _inputs(tokenizer)

    def predict(apply: Apply, batch: Batch, **options):
        tokens = inputs(batch)
        (logits, class_logits), layers = apply(tokens, **options)
        return cross_entropy(logits, tokens).mean(axis=-1), class_logits, layers

    def loss(apply: Apply, batch: Batch, key: jax.Array):
        trace = regularizer.reading(jax.random.fold_in(key, 3))
        nats, class_logits, layers = predict(apply, batch, train=True, key=key, trace=trace)
        targets = soft_targets(batch["label"], class_logits.shape[-1], config.label_smoothing)
        class_loss, metrics = class_scores(class_logits, batch["label"], targets)
        generative = nats.mean()
        extra, terms = regularizer.total(layers)
        metrics = {"generative_loss": generative, "class_loss": class_loss, **metrics, **terms}
        return generative + class_loss + extra, metrics

    def evaluate(apply: Apply, batch: Batch) -> dict[str, jax.Array]:
        nats, class_logits, _ = predict(apply, batch)
        generative = jnp.sum(batch["mask"] * nats)
        sums = class_sums(class_logits, batch["label"], batch["mask"])
        return {
            **sums,
            "loss": generative + sums["loss"],
            "class_loss": sums["loss"],
            "generative_loss": generative,
            "bits_per_pixel": generative / math.log(2),
        }

    report = partial(_report_code_length, tokenizer, pixels, "eval/generative_loss")
    return Task(inputs, loss, evaluate, report)


def _tokenizer(config: Config, pixels: Pixels, *, causal: bool, classes: bool) -> Tokenizer:
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
    return make_tokenizer(pixels, model.vocab_size)


def _inputs(tokenizer: Tokenizer) -> Callable[[Batch], jax.Array]:
    return lambda batch: tokenizer.encode(batch["text" if "text" in batch else "image"])


def _reported(tokenizer: Tokenizer, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Examples spread evenly over the split, all or so many as have REPORTED tokens: their places `[m]`, tokens `[m, n]`."""
    encode = jax.jit(_inputs(tokenizer))
    length = jax.eval_shape(encode, {name: np.stack([value]) for name, value in source[0].items()}).shape[1]
    count = min(len(source), max(1, REPORTED // length))
    chosen = np.arange(count) * len(source) // count
    examples = ([source[int(i)] for i in part] for part in np.array_split(chosen, -(-count // 256)))
    batches = ({name: np.stack([each[name] for each in part]) for name in part[0]} for part in examples)
    return chosen, np.concatenate([np.asarray(encode(batch)) for batch in batches])


def _which(tokens: np.ndarray, source: Source, what: str) -> str:
    """What a table is of, in words."""
    part = (
        "" if len(tokens) == len(source) else f", spread over {len(source):,}, of which the model's mean is"
    )
    return f"{len(tokens):,} test {what} of {tokens.shape[1]:,} tokens{part}"


def _report_code_length(
    tokenizer: Tokenizer,
    pixels: Pixels,
    loss: str,
    values: Mapping[str, float],
    source: Source,
    folder: Path,
) -> dict[str, str]:
    """The test loss as a code length, next to those of ordinary coders on the same tokens.

    Of more than REPORTED tokens the coders see a part; the model's mean is that of the whole split. Writes
    `code_length.json`. The model itself is not counted, nor is the palette.
    """
    chosen, tokens = _reported(tokenizer, source)
    bits = {
        "model": values[loss] * tokens.size / math.log(2),
        "order-0 entropy": baselines.order0_bits(tokens),
        "order-1 entropy": baselines.order1_bits(tokens),
        "zlib -9": baselines.zlib_bits(tokens),
        "lzma -9e": baselines.lzma_bits(tokens),
    }
    if not pixels.text:
        seen = tokenizer.decode(tokens)
        bits["png, a file an image"] = baselines.png_bits(seen)
        bits["png, one contact sheet"] = baselines.png_sheet_bits(seen)
    what = "windows of text" if pixels.text else "images"
    lengths = _table(f"code length of {_which(tokens, source, what)}", bits, tokens.size, pixels.unit)
    report = {"examples": len(tokens), "tokens": tokens.size, "code_length": lengths}
    rows = {"code length": str(folder / "code_length.json")}
    if pixels.colours is not None:
        images = np.stack([source[int(i)]["image"] for i in chosen])
        mse = float(np.mean((images.astype(np.float64) - seen) ** 2))
        report["palette"] = {"mse": mse, "psnr_db": 10 * math.log10(255**2 / mse) if mse else math.inf}
        rows["palette"] = (
            f"{len(pixels.colours)} colours, mean squared error {mse:.1f}, {report['palette']['psnr_db']:.2f} dB"
        )
    write_atomically(folder / "code_length.json", json.dumps(report, indent=1) + "\n")
    return rows


def _report_masked(
    tokenizer: Tokenizer,
    pixels: Pixels,
    values: Mapping[str, float],
    source: Source,
    folder: Path,
) -> dict[str, str]:
    """The test loss of a masked token next to the entropies of a token; writes `masked_prediction.json`."""
    _, tokens = _reported(tokenizer, source)
    bits = {
        "model": values["eval/loss"] * tokens.size / math.log(2),
        "order-0 entropy": baselines.order0_bits(tokens),
        "order-1 entropy": baselines.order1_bits(tokens),
    }
    title = f"a masked {pixels.unit} of {_which(tokens, source, 'examples')}"
    lengths = _table(title, bits, tokens.size, pixels.unit)
    for length in lengths.values():
        del length["bytes"]  # Tokens that are predicted from each other are no code.
    report = {"examples": len(tokens), "tokens": tokens.size, "masked_prediction": lengths}
    write_atomically(folder / "masked_prediction.json", json.dumps(report, indent=1) + "\n")
    return {"masked prediction": str(folder / "masked_prediction.json")}


def _table(title: str, bits: Mapping[str, float], count: int, unit: str) -> dict[str, dict[str, float]]:
    """Prints lengths in bits of `count` tokens, and returns them by name."""
    lengths = {
        name: {
            "nats_per_token": total * math.log(2) / count,
            f"bits_per_{unit}": total / count,
            "bytes": total / 8,
        }
        for name, total in bits.items()
    }
    wide_table(
        title,
        ["", "nats a token", f"bits a {unit}", "bytes", "model is shorter by"],
        [
            [
                name,
                f"{length['nats_per_token']:.4f}",
                f"{length[f'bits_per_{unit}']:.4f}",
                f"{length['bytes']:,.0f}",
                "" if name == "model" else f"{1 - bits['model'] / bits[name]:.1%}",
            ]
            for name, length in lengths.items()
        ],
    )
    return lengths
