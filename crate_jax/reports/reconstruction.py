"""Errors of an autoencoder's reconstructions beside guesses that need no model, and pictures of some."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from crate_jax.analysis.pictures import image_grid
from crate_jax.data import subset
from crate_jax.models.layers import patchify, unpatchify
from crate_jax.parallel.sharding import replicated, shard_batch
from crate_jax.reports.base import Figure, SectionResult, Table, TrainedRun, lower_by
from crate_jax.tasks.reconstruct import Reconstruction, patch_errors, patch_moments

# So many test images are looked at, spread evenly over the split, and so many of those are drawn.
MAX_EXAMPLES, DRAWN = 1024, 16
# A patch that was hidden, in the picture of what the model saw; grey levels of 0 … 255.
HIDDEN = 128


class _Seen(NamedTuple):
    """Prediction, targets `[m, n, q]` and mask `[m, n]` of the examples, and for those drawn the patches of their pixels."""

    prediction: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    drawn: np.ndarray  # places among the m examples
    patches: np.ndarray


def make(trained: TrainedRun) -> SectionResult | None:
    """Mean squared errors and pictures; nothing for a run of another task."""
    run = trained.run
    if run.config.task not in ("masked_autoencoder", "autoencoder"):
        return None
    masked = run.config.task == "masked_autoencoder"
    images = Reconstruction(run.config, run.meaning, masked)
    seen = _look(trained, images)
    guesses = {"model": seen.prediction, "mean patch": mean_patch(seen.targets, seen.mask)}
    if masked:
        guesses["nearest visible patch"] = nearest_patch(seen.targets, seen.mask)
    errors = {
        name: float(np.mean(patch_errors(guess, seen.targets, seen.mask))) for name, guess in guesses.items()
    }
    count = len(seen.mask)
    kind = "hidden patches, each normalised" if masked else "all patches, in normalised pixels"
    columns = "masked, reconstruction, original" if masked else "reconstruction, original"
    table = Table(
        f"mean squared error of {kind}: {count:,} test images",
        ["", "error", "model's is lower by"],
        [
            [name, f"{error:.4f}", "" if name == "model" else lower_by(errors["model"], error)]
            for name, error in errors.items()
        ],
    )
    figure = Figure(
        "reconstruction.png",
        image_grid(_pictures(images, seen)),
        f"{len(seen.drawn)} test images, for each side by side: {columns}.",
    )
    text = f"Mean squared error of {kind}, over {count:,} test images. “Mean patch” is the mean of those patches at each "
    text += "place: no prediction that is the same for all images has a smaller error."
    if masked:
        text += " “Nearest visible patch” copies it, normalised in its own right."
    return SectionResult(
        title="Reconstruction",
        text=f"{text} In the picture: {columns}.",
        values={"images": count, "mean_squared_error": errors},
        tables=[table],
        figures=[figure],
    )


def _look(trained: TrainedRun, images: Reconstruction) -> _Seen:
    """Every process runs this, and each of them has all results."""
    run = trained.run
    source = run.data.source("test")
    some = subset.spread(source, MAX_EXAMPLES)
    chosen, drawn = some.indices, subset.spread(some, DRAWN).indices

    @partial(jax.jit, out_shardings=replicated(run.mesh))
    def look(params, batch):
        pixels = images.inputs(batch)
        noise = images.fixed_noise(batch["index"])
        seen = images.predict(partial(run.model.apply, params), pixels, noise)
        return *seen, patchify(pixels, images.model.patch_size), batch["mask"]

    parts, patches, done = [], [], 0
    for batch in run.data.eval_batches(some):
        # An example's mask depends on its place in the whole split.
        batch = {"image": batch["image"], "index": chosen[batch["index"]], "mask": batch["mask"]}
        *seen, whole, counts = jax.device_get(look(trained.params, shard_batch(batch, run.mesh)))
        parts.append([each[counts > 0] for each in seen])
        here = drawn[(drawn >= done) & (drawn < done + len(parts[-1][0]))]
        patches.append(whole[here - done])
        done += len(parts[-1][0])
    joined = (np.concatenate(each) for each in zip(*parts, strict=True))
    return _Seen(*joined, drawn, np.concatenate(patches))


def _pictures(images: Reconstruction, seen: _Seen) -> Sequence[np.ndarray]:
    """What the model saw (where patches are hidden), its reconstruction, the original."""
    original, prediction = images.to_pictures(seen.patches), seen.prediction[seen.drawn]
    if not images.masked:
        return [images.to_pictures(prediction), original]
    hidden = seen.mask[seen.drawn][..., None]
    # Targets have lost mean and contrast of their patch; drawn with those of the original.
    mean, deviation = patch_moments(seen.patches)
    prediction = np.where(hidden, prediction * deviation + mean, seen.patches)
    area = np.broadcast_to(hidden, seen.patches.shape)
    covered = np.asarray(unpatchify(area, images.model.patch_size, original.shape[-1]))
    return [np.where(covered, HIDDEN, original), images.to_pictures(prediction), original]


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
