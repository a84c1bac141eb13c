"""Next-pixel, masked-pixel and joint prediction against sums by hand; tokens of colour images."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import InputError, models
from crate_jax.models.gpt import MASKED
from crate_jax.runs.config import Config, DataConfig, RegularizerConfig
from crate_jax.tasks import make_task
from crate_jax.tasks.tokenizer import ValueMeaning, dequantise, make_tokenizer, quantise, to_bytes

GREY = ValueMeaning(max_value=3)
CONFIG = Config(
    model=models.IGPTConfig(vocab_size=4, num_positions=4, dim=8, depth=1, heads=2),
    task="autoregressive",
    label_smoothing=0.0,
)
IMAGES = np.array([[[0, 1], [2, 3]], [[3, 3], [0, 0]]], np.uint8)[..., None]
TOKENS = IMAGES.reshape(2, 4)
BATCH = {
    "image": jnp.asarray(IMAGES),
    "label": jnp.array([1, 0]),
    "index": jnp.array([0, -1]),
    "mask": jnp.array([1.0, 0.0]),
}
LOGITS = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)
CLASS_LOGITS = np.array([[0.0, math.log(3)], [1.0, 0.0]], np.float32)


def with_model(task, **changes):
    return dataclasses.replace(CONFIG, task=task, model=dataclasses.replace(CONFIG.model, **changes))


def nats_by_hand():
    """−log p of every pixel, in float64, without any library's cross-entropy."""
    exp = np.exp(LOGITS.astype(np.float64))
    chosen = np.take_along_axis(exp, TOKENS[..., None].astype(int), axis=-1)[..., 0]
    return -np.log(chosen / exp.sum(axis=-1))


def test_autoregressive_loss_by_hand():
    task = make_task(CONFIG, GREY)
    np.testing.assert_array_equal(task.inputs(BATCH), TOKENS)
    apply = lambda tokens, **_: (jnp.asarray(LOGITS), None)  # noqa: E731
    loss, _ = task.loss(apply, BATCH, jax.random.key(0))
    np.testing.assert_allclose(loss, nats_by_hand().mean(), rtol=1e-6)
    metrics = task.evaluate(apply, BATCH)
    np.testing.assert_allclose(metrics["loss"], [nats_by_hand()[0].mean(), 1], rtol=1e-6)
    bits = nats_by_hand()[0].mean() / np.log(2)
    np.testing.assert_allclose(metrics["bits_per_pixel"], [bits, 1], rtol=1e-6)


def test_an_untrained_model_costs_the_logarithm_of_the_vocabulary():
    model = models.create(CONFIG.model)
    loss, _ = make_task(CONFIG, GREY).loss(
        lambda tokens, **options: model.apply(model.init(jax.random.key(0)), tokens, **options),
        BATCH,
        jax.random.key(1),
    )
    np.testing.assert_allclose(loss, math.log(4), rtol=1e-6)


def test_bert_loss_by_hand():
    task = make_task(with_model("bert", causal=False), GREY)
    seen = []

    def apply(tokens, **_):
        seen.append(np.asarray(tokens))
        return jnp.asarray(LOGITS), None

    for seed in range(20):
        loss, _ = task.loss(apply, BATCH, jax.random.key(seed))
        masked = seen[-1] == MASKED
        np.testing.assert_array_equal(seen[-1][~masked], TOKENS[~masked])
        nats = nats_by_hand()
        by_hand = np.mean([row[m].mean() if m.any() else 0 for row, m in zip(nats, masked, strict=True)])
        np.testing.assert_allclose(loss, by_hand, rtol=1e-5)
    assert 0.05 < np.mean([tokens == MASKED for tokens in seen]) < 0.3
    # In evaluation the mask is a function of the example alone.
    task.evaluate(apply, BATCH)
    swapped = {name: value[::-1] for name, value in BATCH.items()}
    task.evaluate(apply, swapped)
    np.testing.assert_array_equal(seen[-2] == MASKED, (seen[-1] == MASKED)[::-1])


def test_joint_loss_by_hand():
    task = make_task(with_model("joint", num_classes=2), GREY)
    apply = lambda tokens, **_: ((jnp.asarray(LOGITS), jnp.asarray(CLASS_LOGITS)), None)  # noqa: E731
    # p(class 1) = 3/4 for the first image, p(class 0) = e/(1 + e) for the second.
    class_nats = np.array([-math.log(0.75), -math.log(math.e / (1 + math.e))])
    loss, metrics = task.loss(apply, BATCH, jax.random.key(0))
    np.testing.assert_allclose(loss, nats_by_hand().mean() + class_nats.mean(), rtol=1e-6)
    assert metrics["accuracy"] == 1
    metrics = task.evaluate(apply, BATCH)
    np.testing.assert_allclose(metrics["class_loss"], [class_nats[0], 1], rtol=1e-6)
    np.testing.assert_allclose(metrics["generative_loss"], [nats_by_hand()[0].mean(), 1], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], [nats_by_hand()[0].mean() + class_nats[0], 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_model("bert"), "model.causal: found True; accepted for task bert: False"),
        (with_model("autoregressive", causal=False), "model.causal: found False"),
        (with_model("joint"), "model.num_classes: found 0; accepted for task joint: the number of classes"),
        (with_model("autoregressive", num_classes=2), "model.num_classes: found 2"),
        (
            with_model("autoregressive", vocab_size=5),
            "found 4 grey levels; accepted: 5, which is model.vocab",
        ),
        (
            dataclasses.replace(CONFIG, model=models.crate("tiny")),
            "task: autoregressive predicts tokens, which model.family 'crate' does not",
        ),
    ],
)
def test_models_of_another_task_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        make_task(config, GREY)


@pytest.fixture(scope="module")
def colours():
    return np.random.default_rng(1).uniform(-1, 1, (64, 3)).astype(np.float32)


def test_quantise_finds_the_nearest_colour(colours):
    pixels = np.random.default_rng(2).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    tokens = make_tokenizer(ValueMeaning(255, colours), 64).encode(jnp.asarray(pixels))
    x = (pixels.reshape(3, 256, 1, 3) / 127.5 - 1).astype(np.float64)
    brute_force = np.argmin(np.sum((x - colours) ** 2, axis=-1), axis=-1)
    np.testing.assert_array_equal(tokens, brute_force)
    np.testing.assert_array_equal(quantise(dequantise(tokens, colours), colours), tokens)


def test_quantise_makes_no_array_of_differences(colours):
    jaxpr = jax.make_jaxpr(lambda x: quantise(x, colours))(jnp.zeros((1000, 3)))
    sizes = [math.prod(v.aval.shape) for equation in jaxpr.jaxpr.eqns for v in equation.outvars]
    assert max(sizes) == 1000 * 64


def test_tokens_decode_to_images(colours):
    tokens = np.random.default_rng(3).integers(0, 64, (2, 16))
    images = make_tokenizer(ValueMeaning(255, colours), 64).decode(tokens)
    assert images.shape == (2, 4, 4, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images.reshape(2, 16, 3), to_bytes(colours)[tokens])
    np.testing.assert_array_equal(to_bytes([[-1.0, 0.0, 1.0]]), [[0, 128, 255]])
    np.testing.assert_array_equal(make_tokenizer(GREY, 4).decode(TOKENS), IMAGES)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (
            "autoregressive",
            {"data": DataConfig(mixup=0.8)},
            "data.mixup: found 0.8; accepted for task auto.*: 0",
        ),
        ("joint", {"data": DataConfig(erase=0.25)}, "data.erase: found 0.25; .*only classify uses it"),
        (
            "bert",
            {"regularizer": RegularizerConfig(orthogonality=0.1)},
            "regularizer.orthogonality: found 0.1; .*only classify and joint use it",
        ),
    ],
)
def test_settings_of_other_tasks_are_refused(task, changes, message):
    with pytest.raises(InputError, match=message):
        make_task(dataclasses.replace(with_model(task), **changes), GREY)
