"""Masked and plain autoencoding against sums by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import InputError, models
from crate_jax.runs.config import Config, DataConfig
from crate_jax.tasks import make_task
from crate_jax.tasks.reconstruct import normalise_patches
from crate_jax.tasks.tokenizer import ValueMeaning

CONFIG = Config(
    model=models.CRATEMAEConfig(
        image_size=4, patch_size=2, channels=1, dim=8, depth=1, heads=2, head_dim=4, mask_ratio=0.5
    ),
    task="masked_autoencoder",
    data=DataConfig(mean=(0.25,), std=(0.5,)),
)
PIXELS = ValueMeaning(max_value=16)
IMAGES = np.random.default_rng(0).integers(0, 17, (3, 4, 4, 1)).astype(np.uint8)
BATCH = {
    "image": jnp.asarray(IMAGES),
    "label": jnp.zeros(3, jnp.int32),
    "index": jnp.array([5, 9, -1]),
    "mask": jnp.array([1.0, 1.0, 0.0]),
}
PREDICTION = np.random.default_rng(1).normal(size=(3, 4, 4)).astype(np.float32)


def patches_by_hand():
    """Float64 patches of normalised pixels, cut with loops."""
    x = (IMAGES.astype(np.float64) / 16 - 0.25) / 0.5
    corners = [(i, j) for i in (0, 2) for j in (0, 2)]
    return np.stack([[image[i : i + 2, j : j + 2].reshape(-1) for i, j in corners] for image in x])


def test_masked_loss_by_hand():
    task = make_task(CONFIG, PIXELS)
    seen = []

    def apply(images, noise, **_):
        seen.append(np.asarray(noise))
        return jnp.asarray(PREDICTION), None

    loss, _ = task.loss(apply, BATCH, jax.random.key(0))
    patches = patches_by_hand()
    mean, var = patches.mean(-1, keepdims=True), patches.var(-1, keepdims=True, ddof=1)
    squared = ((PREDICTION - (patches - mean) / np.sqrt(var + 1e-6)) ** 2).mean(axis=-1)
    hidden = np.argsort(np.argsort(seen[0], axis=1), axis=1) >= 2
    np.testing.assert_allclose(loss, squared[hidden].mean(), rtol=1e-5)
    task.loss(apply, BATCH, jax.random.key(1))
    assert (seen[0] != seen[1]).all()

    # In evaluation the mask is a function of the example's place alone, and padding does not count.
    metrics = task.evaluate(apply, BATCH)
    hidden = np.argsort(np.argsort(seen[2], axis=1), axis=1) >= 2
    by_hand = sum(squared[i][hidden[i]].mean() for i in range(2))
    np.testing.assert_allclose(metrics["loss"], [by_hand, 2], rtol=1e-5)
    task.evaluate(apply, {name: value[::-1] for name, value in BATCH.items()})
    np.testing.assert_array_equal(seen[2], seen[3][::-1])


def test_autoencoder_loss_by_hand():
    task = make_task(dataclasses.replace(CONFIG, task="autoencoder"), PIXELS)
    apply = lambda images, **_: (jnp.asarray(PREDICTION), None)  # noqa: E731
    errors = ((PREDICTION - patches_by_hand()) ** 2).mean(axis=(1, 2))
    loss, _ = task.loss(apply, BATCH, jax.random.key(0))
    np.testing.assert_allclose(loss, errors.mean(), rtol=1e-5)
    np.testing.assert_allclose(task.evaluate(apply, BATCH)["loss"], [errors[:2].sum(), 2], rtol=1e-5)


def test_flat_patches_become_zeros():
    np.testing.assert_array_equal(normalise_patches(jnp.full((1, 2, 4), 0.7)), np.zeros((1, 2, 4)))


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        (models.crate("tiny"), "autoencoder", "task: autoencoder reconstructs images, .* 'crate' does not"),
        (
            dataclasses.replace(CONFIG.model, mask_ratio=0.0),
            "masked_autoencoder",
            "model.mask_ratio: found 0; accepted",
        ),
        (CONFIG.model, "classify", "task: classify needs classes, which model.family 'crate_mae' does not"),
        (
            dataclasses.replace(CONFIG.model, patch_size=1),
            "masked_autoencoder",
            "model.patch_size: found 1 with 1 channel; accepted for task masked_autoencoder: patches of 2 numbers",
        ),
    ],
)
def test_models_of_another_task_are_refused(model, task, message):
    with pytest.raises(InputError, match=message):
        make_task(dataclasses.replace(CONFIG, model=model, task=task), PIXELS)
