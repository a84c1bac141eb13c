"""Reconstruction of images by an encoder and a decoder: masked (He et al. 2022, Pai et al. 2024), and of the whole image."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import InputError, models
from crate_jax.models.crate_mae import random_mask
from crate_jax.models.layers import patchify, unpatchify
from crate_jax.runs.config import Config
from crate_jax.tasks.base import Apply, Batch, Metrics, Task, fixed_keys, masked_mean, normalised_images
from crate_jax.tasks.tokenizer import ValueMeaning

# Added to the variance of a patch: flat patches have none.
VARIANCE_EPS = 1e-6


def masked_autoencoder(config: Config, meaning: ValueMeaning) -> Task:
    """L = 1/|M| Σ_{i∈M} ‖x̂_i − (x_i − μ_i)/√(σ²_i + 10⁻⁶)‖² / q over the hidden patches M, with the mean and the (unbiased)
    variance of each patch of q numbers.

    The model's `mask_ratio` of the patches is hidden, at random in training; in evaluation an example's mask is a function
    of its place in the split alone.

    Raises:
      InputError: nothing is hidden, patches of one number, or another kind of model.
    """
    images = Reconstruction(config, meaning, masked=True)
    if not config.model.mask_ratio:
        raise InputError(
            "model.mask_ratio: found 0; accepted for task masked_autoencoder: more than 0 (without a mask: task autoencoder)"
        )
    if config.model.patch_size**2 * config.model.channels < 2:
        raise InputError(
            "model.patch_size: found 1 with 1 channel; accepted for task masked_autoencoder: patches of 2 numbers or more, "
            "as each is normalised"
        )
    return _task(images)


def autoencoder(config: Config, meaning: ValueMeaning) -> Task:
    """L = 1/n Σ_i ‖x̂_i − x_i‖² / q over all n patches of q normalised pixel values; nothing is hidden."""
    return _task(Reconstruction(config, meaning, masked=False))


def _task(images: "Reconstruction") -> Task:
    def loss(apply: Apply, batch: Batch, key: jax.Array):
        noise = None
        if images.masked:
            noise_key, key = jax.random.split(key)
            noise = jax.random.uniform(noise_key, (len(batch["image"]), images.model.num_tokens))
        seen = images.predict(apply, images.inputs(batch), noise, train=True, key=key)
        return patch_errors(*seen).mean(), {}

    def evaluate(apply: Apply, batch: Batch) -> Metrics:
        noise = images.fixed_noise(batch["index"])
        errors = patch_errors(*images.predict(apply, images.inputs(batch), noise))
        return {"loss": masked_mean(batch["mask"], errors)}

    return Task(images.inputs, loss, evaluate)


@dataclass(frozen=True)
class Reconstruction:
    """Images as the patches that a model predicts, and the way back.

    Raises:
      InputError: a model that does not reconstruct images.
    """

    config: Config
    meaning: ValueMeaning
    masked: bool  # Some patches are hidden, and each target is normalised; else all are seen, and targets are as they are.

    def __post_init__(self):
        model = self.config.model
        if not isinstance(model, models.CRATEMAEConfig):
            raise InputError(
                f"task: {self.config.task} reconstructs images, which model.family {model.family!r} does not; accepted: "
                "crate_mae"
            )

    @property
    def model(self) -> models.CRATEMAEConfig:
        return self.config.model

    def inputs(self, batch: Batch) -> jax.Array:
        """Normalised images `[b, h, w, c]`."""
        return normalised_images(self.config, self.meaning)(batch)

    def targets(self, images: jax.Array) -> jax.Array:
        """What the model should predict, `[b, n, q]`."""
        patches = patchify(images, self.model.patch_size)
        return normalise_patches(patches) if self.masked else patches

    def predict(self, apply: Apply, images: jax.Array, noise: jax.Array | None, **options):
        """`(prediction [b, n, q], targets [b, n, q], mask [b, n])`; the mask is 1 for the patches that count.

        `noise` `[b, n]` decides which patches are hidden; None where none are.
        """
        targets = self.targets(images)
        if noise is None:
            return apply(images, **options)[0], targets, jnp.ones(targets.shape[:2])
        prediction, _ = apply(images, noise=noise, **options)
        return prediction, targets, random_mask(noise, self.model.mask_ratio)

    def fixed_noise(self, indices: jax.Array) -> jax.Array | None:
        """Noise for evaluation: it depends on the examples' places in the split and on nothing else."""
        return fixed_noise(indices, self.model.num_tokens) if self.masked else None

    def to_pictures(self, patches: np.ndarray) -> np.ndarray:
        """Patches of normalised pixels `[b, n, q]` as images with values 0 … 255."""
        images = np.asarray(unpatchify(patches, self.model.patch_size, self.model.channels))
        data = self.config.data
        return np.clip(255 * (images * np.asarray(data.std) + np.asarray(data.mean)), 0, 255)


def patch_errors(prediction: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean squared error of the patches whose mask is 1: `[b, n, q]`, `[b, n, q]`, `[b, n]` → `[b]`."""
    return jnp.sum(mask * jnp.mean((prediction - targets) ** 2, axis=-1), axis=-1) / jnp.sum(mask, axis=-1)


def normalise_patches(patches: jax.Array) -> jax.Array:
    """(x − μ)/√(σ² + 10⁻⁶) with mean and unbiased variance over the last axis."""
    mean, deviation = patch_moments(patches)
    return (patches - mean) / deviation


def patch_moments(patches):
    """Mean and √(σ² + 10⁻⁶) over the last axis, both `[…, 1]`."""
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return patches.mean(axis=-1, keepdims=True), (variance + VARIANCE_EPS) ** 0.5


def fixed_noise(indices: jax.Array, tokens: int) -> jax.Array:
    """Noise `[b, n]` that depends on the examples' places in the split and on nothing else."""
    return jax.vmap(lambda key: jax.random.uniform(key, (tokens,)))(fixed_keys(indices))
