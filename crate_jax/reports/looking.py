"""What sections share that look at single images: which ones, and what the model's layers say of them."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from crate_jax.analysis.attention import at_shifts
from crate_jax.data.sources import Source
from crate_jax.models import ImageConfig
from crate_jax.parallel.sharding import replicated
from crate_jax.reports.base import TrainedRun

# Values a side that a map is refined to by shifted images, and steps per patch at most: 16 passes.
FINE, MAX_STEPS = 32, 4

# Matmul operations that a section may spend on forward passes, so that a report of a large model takes minutes: on a CPU
# some ten seconds of two cores, on an accelerator less.
BUDGET = {"cpu": 1e12}
ACCELERATED = 1e14
# Examples at a time. Not the run's batches: those are padded, perhaps from a few images to hundreds.
AT_ONCE = 64


def affordable(trained: TrainedRun, most: int, *, passes: int = 1, least: int = 4) -> int:
    """Images, at most `most`, that `passes` forward passes can be made of; `least` even where these are too many."""
    run = trained.run
    budget = BUDGET.get(run.mesh.devices.flat[0].platform, ACCELERATED)
    cost = 2 * run.model.num_params * run.config.model.sequence_length
    return max(min(least, most), min(most, int(budget / cost / max(passes, 1))))


def batches(source: Source) -> Iterator[dict[str, np.ndarray]]:
    """Examples, AT_ONCE at a time."""
    for start in range(0, len(source), AT_ONCE):
        part = [source[number] for number in range(start, min(start + AT_ONCE, len(source)))]
        yield {name: np.stack([each[name] for each in part]) for name in part[0]}


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
    trained: TrainedRun, read: Callable[[Any, jax.Array], jax.Array], stride: int
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from images to `read(params, inputs)` `[b, …, rows, columns]` of them and of shifted ones as one finer map,
    see `at_shifts`. It is compiled once for images of one shape.
    """
    inputs, patch_size = trained.run.task.inputs, trained.run.config.model.patch_size
    jitted = jax.jit(
        lambda params, images: read(params, inputs({"image": images})),
        out_shardings=replicated(trained.run.mesh),
    )

    def look(images: np.ndarray) -> np.ndarray:
        return jax.device_get(jitted(trained.params, images))

    return lambda images: at_shifts(look, images, patch_size=patch_size, stride=stride)
