"""What sections share that look at single images: which ones, and what the model's layers say of them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from crate_jax.analysis.attention import at_shifts
from crate_jax.models import ImageConfig
from crate_jax.parallel.sharding import replicated
from crate_jax.reports.base import TrainedRun

# Values a side that a map is refined to by shifted images, and steps per patch at most: 16 passes.
FINE, MAX_STEPS = 32, 4


def some_images(trained: TrainedRun, count: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Examples to look at: as the model takes them `[m, h, w, c]`, their names in words, and as pictures of 0 … 255."""
    source = trained.examples(count)
    examples = [source[number] for number in range(len(source))]
    images = np.stack([each["image"] for each in examples])
    classes = trained.run.classes or trained.run.info.class_names
    names = [
        classes[label] if 0 <= (label := int(each["label"])) < len(classes) else "no class"
        for each in examples
    ]
    return images, names, images.astype(np.float32) * (255 / trained.run.info.max_value)


def stride_for(config: ImageConfig) -> int:
    """Pixels by which images are shifted, so that a coarse grid of patches becomes one of about FINE values a side."""
    fits = [
        steps
        for steps in range(1, MAX_STEPS + 1)
        if config.patch_size % steps == 0 and steps * max(config.grid) <= FINE
    ]
    return config.patch_size // max(fits, default=1)


def fine_maps(
    trained: TrainedRun, images: np.ndarray, read: Callable[[Any, jax.Array], jax.Array], stride: int
) -> np.ndarray:
    """`read(params, inputs)` `[b, …, rows, columns]` of the images and of shifted ones as one finer map, see `at_shifts`."""
    inputs, patch_size = trained.run.task.inputs, trained.run.config.model.patch_size
    jitted = jax.jit(
        lambda params, images: read(params, inputs({"image": images})),
        out_shardings=replicated(trained.run.mesh),
    )
    return at_shifts(
        lambda images: jax.device_get(jitted(trained.params, images)),
        images,
        patch_size=patch_size,
        stride=stride,
    )
