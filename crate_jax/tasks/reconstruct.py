"""Reconstruction of images by an encoder and a decoder: masked (He et al. 2022, Pai et al. 2024), and of the whole image."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import InputError, models
from crate_jax.analysis.pictures import image_grid
from crate_jax.data.sources import Source
from crate_jax.models.crate_mae import random_mask
from crate_jax.models.layers import patchify, unpatchify
from crate_jax.runs.config import Config
from crate_jax.runs.console import wide_table
from crate_jax.runs.metrics import write_atomically
from crate_jax.tasks.base import Apply, Batch, Task, fixed_keys, normalised_images
from crate_jax.tasks.tokenizer import Pixels

# Added to the variance of a patch: flat patches have none.
VARIANCE_EPS = 1e-6
# The final report looks at so many test images, spread evenly over the split, and draws so many of them.
REPORTED, DRAWN, REPORT_BATCH = 1024, 16, 64
# A patch that was hidden, in the picture of what the model saw; grey levels of 0 … 255.
HIDDEN = 128


def masked_autoencoder(config: Config, pixels: Pixels) -> Task:
    """L = 1/|M| Σ_{i∈M} ‖x̂_i − (x_i − μ_i)/√(σ²_i + 10⁻⁶)‖² / q over the hidden patches M, with the mean and the (unbiased)
    variance of each patch of q numbers.

    The model's `mask_ratio` of the patches is hidden, at random in training; in evaluation an example's mask is a function
    of its place in the split alone.

    Raises:
      InputError: nothing is hidden, patches of one number, or another kind of model.
    """
    geometry = _geometry(config, pixels)
    tokens, ratio = config.model.num_tokens, config.model.mask_ratio
    if not ratio:
        raise InputError(
            "model.mask_ratio: found 0; accepted for task masked_autoencoder: more than 0 (without a mask: task autoencoder)"
        )

    if config.model.patch_size**2 * config.model.channels < 2:
        raise InputError(
            "model.patch_size: found 1 with 1 channel; accepted for task masked_autoencoder: patches of 2 numbers or more, "
            "as each is normalised"
        )

    def errors(apply: Apply, images: jax.Array, noise: jax.Array, **options) -> jax.Array:
        prediction, _ = apply(images, noise=noise, **options)
        return patch_errors(prediction, geometry.targets(images), random_mask(noise, ratio))

    def loss(apply: Apply, batch: Batch, key: jax.Array):
        noise_key, key = jax.random.split(key)
        noise = jax.random.uniform(noise_key, (len(batch["image"]), tokens))
        return errors(apply, geometry.inputs(batch), noise, train=True, key=key).mean(), {}

    def evaluate(apply: Apply, batch: Batch) -> dict[str, jax.Array]:
        noise = fixed_noise(batch["index"], tokens)
        total = jnp.sum(batch["mask"] * errors(apply, geometry.inputs(batch), noise))
        return {"loss": total, "count": jnp.sum(batch["mask"])}

    def show(apply: Apply, source: Source, folder: Path) -> dict[str, str]:
        def look(images, indices):
            noise = fixed_noise(indices, tokens)
            return apply(images, noise=noise)[0], geometry.targets(images), random_mask(noise, ratio)

        return _show(geometry, look, source, folder, masked=True)

    return Task(geometry.inputs, loss, evaluate, show=show)


def autoencoder(config: Config, pixels: Pixels) -> Task:
    """L = 1/n Σ_i ‖x̂_i − x_i‖² / q over all n patches of q normalised pixel values; nothing is hidden."""
    geometry = _geometry(config, pixels, normalise=False)

    def errors(apply: Apply, images: jax.Array, **options) -> jax.Array:
        prediction, _ = apply(images, **options)
        targets = geometry.targets(images)
        return patch_errors(prediction, targets, jnp.ones(targets.shape[:2]))

    def loss(apply: Apply, batch: Batch, key: jax.Array):
        return errors(apply, geometry.inputs(batch), train=True, key=key).mean(), {}

    def evaluate(apply: Apply, batch: Batch) -> dict[str, jax.Array]:
        total = jnp.sum(batch["mask"] * errors(apply, geometry.inputs(batch)))
        return {"loss": total, "count": jnp.sum(batch["mask"])}

    def show(apply: Apply, source: Source, folder: Path) -> dict[str, str]:
        def look(images, indices):
            del indices
            targets = geometry.targets(images)
            return apply(images)[0], targets, jnp.ones(targets.shape[:2])

        return _show(geometry, look, source, folder, masked=False)

    return Task(geometry.inputs, loss, evaluate, show=show)


def patch_errors(prediction: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean squared error of the patches whose mask is 1: `[b, n, q]`, `[b, n, q]`, `[b, n]` → `[b]`."""
    return jnp.sum(mask * jnp.mean((prediction - targets) ** 2, axis=-1), axis=-1) / jnp.sum(mask, axis=-1)


def normalise_patches(patches: jax.Array) -> jax.Array:
    """(x − μ)/√(σ² + 10⁻⁶) with mean and unbiased variance over the last axis."""
    mean, deviation = _moments(patches)
    return (patches - mean) / deviation


def _moments(patches):
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return patches.mean(axis=-1, keepdims=True), (variance + VARIANCE_EPS) ** 0.5


def fixed_noise(indices: jax.Array, tokens: int) -> jax.Array:
    """Noise `[b, n]` that depends on the examples' places in the split and on nothing else."""
    return jax.vmap(lambda key: jax.random.uniform(key, (tokens,)))(fixed_keys(indices))


def mean_patch(targets: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean at each place over the images `[m, n, q]` whose mask `[m, n]` is 1 there: no prediction that is the same for
    all images has a smaller error.
    """
    count = np.maximum(mask.sum(axis=0), 1)[:, None]
    return np.broadcast_to((mask[..., None] * targets).sum(axis=0) / count, targets.shape)


def nearest_patch(targets: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The nearest patch of the same image whose mask is 0, the mean of them where several are equally near.

    Args:
      targets: `[m, n, q]`, n patches in a square grid, row by row.
      mask: `[m, n]`, 1 for hidden.
    """
    side = round(targets.shape[1] ** 0.5)
    places = np.stack(np.divmod(np.arange(side * side), side), axis=-1)
    distances = np.sum((places[:, None] - places) ** 2, axis=-1)
    guesses = np.empty_like(targets)
    for guess, patches, hidden in zip(guesses, targets, mask, strict=True):
        to_visible = np.where(hidden, np.inf, distances)
        nearest = to_visible == to_visible.min(axis=1, keepdims=True)
        guess[:] = nearest @ patches / nearest.sum(axis=1, keepdims=True)
    return guesses


class _Geometry(NamedTuple):
    """How batches become images, images become targets, and patches of pixels pictures of 0 … 255."""

    inputs: Callable[[Batch], jax.Array]
    targets: Callable[[jax.Array], jax.Array]
    to_picture: Callable[[np.ndarray], np.ndarray]
    patch_size: int


def _geometry(config: Config, pixels: Pixels, *, normalise: bool = True) -> _Geometry:
    model = config.model
    if not isinstance(model, models.CRATEMAEConfig):
        raise InputError(
            f"task: {config.task} reconstructs images, which model.family {model.family!r} does not; accepted: crate_mae"
        )
    mean, std = np.asarray(config.data.mean), np.asarray(config.data.std)

    def targets(images):
        patches = patchify(images, model.patch_size)
        return normalise_patches(patches) if normalise else patches

    def to_picture(patches):
        images = np.asarray(unpatchify(patches, model.patch_size, model.channels))
        return np.clip(255 * (images * std + mean), 0, 255)

    return _Geometry(normalised_images(config, pixels), targets, to_picture, model.patch_size)


def _show(geometry: _Geometry, look, source: Source, folder: Path, *, masked: bool) -> dict[str, str]:
    """Errors next to those of guesses that need no model (`reconstruction.json`), and pictures (`reconstruction.png`)."""
    chosen = np.unique(np.linspace(0, len(source) - 1, min(len(source), REPORTED)).astype(int))
    run = jax.jit(lambda batch, indices: look(geometry.inputs(batch), indices))
    parts = [
        jax.device_get(run({"image": np.stack([source[int(i)]["image"] for i in part])}, part))
        for part in np.array_split(chosen, -(-len(chosen) // REPORT_BATCH))
    ]
    prediction, targets, mask = (np.concatenate(each) for each in zip(*parts, strict=True))
    guesses = {"model": prediction, "mean patch": mean_patch(targets, mask)}
    if masked:
        guesses["nearest visible patch"] = nearest_patch(targets, mask)
    errors = {name: float(np.mean(patch_errors(guess, targets, mask))) for name, guess in guesses.items()}
    kind = "hidden patches, each normalised" if masked else "all patches, in normalised pixels"
    wide_table(
        f"mean squared error of {kind}: {len(chosen):,} test images",
        ["", "error", "model's is lower by"],
        [
            [name, f"{error:.4f}", "" if name == "model" else f"{1 - errors['model'] / error:.1%}"]
            for name, error in errors.items()
        ],
    )
    report = {"images": len(chosen), "mean_squared_error": errors}
    write_atomically(folder / "reconstruction.json", json.dumps(report, indent=1) + "\n")

    drawn = np.linspace(0, len(chosen) - 1, min(len(chosen), DRAWN)).astype(int)
    batch = {"image": np.stack([source[int(i)]["image"] for i in chosen[drawn]])}
    patches = np.asarray(patchify(jax.jit(geometry.inputs)(batch), geometry.patch_size))
    original, drawn_prediction, hidden = (
        geometry.to_picture(patches),
        prediction[drawn],
        mask[drawn][..., None],
    )
    if masked:
        # Targets have lost mean and contrast of their patch; drawn with those of the original.
        mean, deviation = _moments(patches)
        drawn_prediction = np.where(hidden, drawn_prediction * deviation + mean, patches)
    shown = [geometry.to_picture(drawn_prediction), original]
    if masked:
        area = np.broadcast_to(hidden, patches.shape)
        seen = np.asarray(unpatchify(area, geometry.patch_size, original.shape[-1]))
        shown.insert(0, np.where(seen, HIDDEN, original))
    write_atomically(folder / "reconstruction.png", image_grid(shown))
    columns = "masked, reconstruction, original" if masked else "reconstruction, original"
    return {
        "reconstruction": str(folder / "reconstruction.json"),
        "pictures": f"{folder / 'reconstruction.png'}: {columns}",
    }
