"""Pictures of two models' alignment: scores of all layers, the null of their maximum, scores against n."""

import matplotlib.pyplot as plt
import numpy as np

from crate_jax.analysis.alignment import Result
from crate_jax.analysis.figures import BLUE, GREY, ORANGE, as_png


def comparison(results: list[Result], *, title: str) -> bytes:
    """One row per measure: heat map of all pairs of layers, null of the maximum, score against n."""
    figure, panels = plt.subplots(len(results), 3, figsize=(14, 3.9 * len(results)), squeeze=False)
    for result, (heat, null, curve) in zip(results, panels, strict=True):
        _heat_map(heat, result, figure)
        _null(null, result)
        _curve(curve, result)
    figure.suptitle(title)
    figure.tight_layout()
    return as_png(figure)


def models(names: list[str], tables: dict[str, np.ndarray], *, title: str) -> bytes:
    """One heat map per measure of all pairs of models: the calibrated maximum over layers; the diagonal is left empty.

    Args:
      names: of the models.
      tables: measure → `[models, models]`, NaN on the diagonal.
      title: of the whole figure.
    """
    size = 1.2 + 0.62 * len(names)
    figure, panels = plt.subplots(
        1, len(tables), figsize=((size + 1.3) * len(tables), size + 0.6), squeeze=False
    )
    for axis, (name, values) in zip(panels[0], tables.items(), strict=True):
        image = axis.imshow(values, vmin=0, vmax=max(0.05, float(np.nanmax(values))), cmap="viridis")
        axis.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_title(f"{name}\ncalibrated maximum over layers", fontsize=9)
        _annotate(axis, values)
        figure.colorbar(image, ax=axis, shrink=0.8)
    figure.suptitle(title)
    figure.tight_layout()
    return as_png(figure)


def _heat_map(axis, result, figure):
    scores, (i, j) = result.compared.scores, result.compared.best
    image = axis.imshow(scores, cmap="viridis", origin="lower", aspect="auto")
    axis.plot(
        j, i, marker="s", markersize=11, markerfacecolor="none", markeredgecolor=ORANGE, markeredgewidth=2
    )
    axis.set_xlabel(f"layer of {result.models[1]}")
    axis.set_ylabel(f"layer of {result.models[0]}")
    for ticks, names in ((axis.set_yticks, result.layers[0]), (axis.set_xticks, result.layers[1])):
        step = -(-len(names) // 12)
        ticks(range(0, len(names), step), names[::step], fontsize=8)
    if scores.size <= 64:
        _annotate(axis, scores)
    axis.set_title(f"{result.measure}\nscores at n = {result.samples:,}; square: the highest", fontsize=10)
    figure.colorbar(image, ax=axis)


def _annotate(axis, values):
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if value < middle else "black"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)


def _null(axis, result):
    maximum = result.compared.maximum
    maxima = result.compared.null.max(axis=(1, 2))
    axis.hist(maxima, bins=30, color=GREY, label=f"maximum after each of {len(maxima)} permutations")
    axis.axvline(maximum.score, color=ORANGE, label=f"observed, {maximum.score:.3f}")
    axis.axvline(
        maximum.threshold, color=BLUE, linestyle="--", label=f"threshold (5 %), {maximum.threshold:.3f}"
    )
    if result.chance is not None:
        axis.axvline(
            result.chance, color="black", linestyle=":", label=f"chance for one pair, {result.chance:.3f}"
        )
    axis.set_xlabel("highest score over pairs of layers")
    axis.set_ylabel("permutations")
    axis.set_title(f"p = {maximum.p:.2g}, calibrated {maximum.calibrated:.3f}", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False)


def _curve(axis, result):
    axis.set_xlabel("number of samples")
    axis.set_ylabel("highest score over pairs of layers")
    axis.set_title("Score against n", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    if not result.curve:
        axis.text(0.5, 0.5, "too few samples", ha="center", transform=axis.transAxes)
        return
    sizes = [point.samples for point in result.curve]
    axis.plot(sizes, [point.score for point in result.curve], color=ORANGE, marker="o", label="score")
    axis.plot(
        sizes, [point.null_mean for point in result.curve], color=GREY, marker="o", label="mean of the null"
    )
    axis.plot(
        sizes,
        [point.threshold for point in result.curve],
        color=BLUE,
        linestyle="--",
        marker="o",
        markersize=4,
        label="threshold (5 %)",
    )
    if result.interval is not None:
        low, high = result.interval
        middle = result.compared.maximum.score
        axis.errorbar(
            [result.samples],
            [middle],
            [[max(0, middle - low)], [max(0, high - middle)]],
            color=ORANGE,
            capsize=3,
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    axis.legend(fontsize=8, frameon=False)
