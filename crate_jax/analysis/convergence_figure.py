"""The picture of `crate_jax.analysis.convergence`."""

from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")  # No display on a server; must be chosen before pyplot is imported.
import matplotlib.pyplot as plt
import numpy as np

from crate_jax.analysis.figures import BLUE, GREY, ORANGE, as_png

# Of families, in the order in which they come; colour-blind safe (Okabe and Ito).
COLORS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9")


def picture(rows: Sequence[Any], *, k: int) -> bytes:
    """Alignment against both probes, before and after training, between all models, against n, and likeness to the pixels.

    Args:
      rows: of a study, see `convergence.Row`.
      k: neighbours of the measure.
    """
    families = list(dict.fromkeys(row.family for row in rows))
    colors = dict(zip(families, COLORS * len(families), strict=False))
    figure, panels = plt.subplots(2, 3, figsize=(14, 8.5))
    (ability, transfer, training), (between, samples, pixels) = panels
    aligned = [row.aligned["mutual_knn"] for row in rows]
    null = float(np.mean([row.shuffled["mutual_knn"] for row in rows]))
    for axis, data in zip((ability, transfer), rows[0].probe, strict=True):
        scatter(axis, rows, [100 * row.probe[data] for row in rows], aligned, colors)
        axis.axhline(null, color=GREY, linestyle=":", label="samples shuffled")
        axis.set(xlabel=f"linear probe on {data}, best layer (%)", ylabel="alignment with other families")
    ability.legend(fontsize=8, frameon=False)
    before = [row.untrained["mutual_knn"] for row in rows]
    scatter(training, rows, before, aligned, colors)
    low, high = min(*before, *aligned), max(*before, *aligned)
    training.plot([low, high], [low, high], color=GREY, linewidth=0.8)
    training.set(xlabel="alignment before training", ylabel="alignment after training")
    scores = np.array([row.scores for row in rows])
    image = between.imshow(np.where(np.eye(len(rows)), np.nan, scores), cmap="cividis")
    figure.colorbar(image, ax=between, shrink=0.85)
    names = [row.name for row in rows]
    between.set_xticks(range(len(rows)), names, fontsize=5, rotation=90)
    between.set_yticks(range(len(rows)), names, fontsize=5)
    between.set_title(f"mutual {k}-NN of the best two layers", fontsize=10)
    curves = np.array([row.curve for row in rows if row.curve])
    if len(curves):
        n, *values = curves.mean(0).T
        labels = {"trained": BLUE, "untrained": ORANGE, "samples shuffled": GREY}
        for (label, color), line in zip(labels.items(), values, strict=True):
            samples.plot(n, line, color=color, marker="o", ms=4, label=label)
        samples.plot(
            n, k / (n - 1), color=GREY, linestyle=":", label="chance for one pair of layers, k/(n − 1)"
        )
        samples.set(xscale="log", xlabel="samples n", ylabel="alignment of the largest models", ylim=(0, 1))
        samples.set_xticks(n, [f"{count:.0f}" for count in n])
        samples.minorticks_off()
        samples.legend(fontsize=8, frameon=False)
    scatter(pixels, rows, [row.pixels for row in rows], aligned, colors)
    pixels.set(xlabel="alignment with the raw pixels", ylabel="alignment with other families")
    for axis in (ability, transfer, training, samples, pixels):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return as_png(figure)


def scatter(
    axis, rows: Sequence[Any], x: Sequence[float], y: Sequence[float], colors: dict[str, str]
) -> None:
    """A point for each model, coloured by its family, larger for more parameters."""
    for family, color in colors.items():
        own = [i for i, row in enumerate(rows) if row.family == family]
        size = [4 * np.log10(rows[i].num_params) ** 1.7 for i in own]
        axis.scatter(
            [x[i] for i in own],
            [y[i] for i in own],
            s=size,
            color=color,
            alpha=0.7,
            linewidths=0,
            label=family,
        )
