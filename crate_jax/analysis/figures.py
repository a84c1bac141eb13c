"""Pictures of what was measured. Every figure is written under a temporary name first."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # No display on a server; must be chosen before pyplot is imported.
import matplotlib.pyplot as plt
import numpy as np

from crate_jax.analysis.layerwise import Measurement
from crate_jax.analysis.linear_probe import Probe
from crate_jax.runs.metrics import write_atomically

# Colour-blind safe (Okabe and Ito).
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"


def save(figure, path: Path) -> None:
    """Write a figure as PNG, see `write_atomically`."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=144, bbox_inches="tight")
    plt.close(figure)
    write_atomically(path, file.getvalue())


def losses(lines: Sequence[Mapping[str, float]], path: Path, *, title: str) -> None:
    """The training loss, averaged between logs, and the test loss, by step; `lines` are those of `metrics.jsonl`."""
    figure, axis = plt.subplots(figsize=(6, 3.8))
    for name, color, style in (("train", BLUE, {}), ("eval", ORANGE, {"marker": "o", "markersize": 5})):
        points = [(line["step"], line[f"{name}/loss"]) for line in lines if f"{name}/loss" in line]
        axis.plot(*zip(*points, strict=True), color=color, label={"eval": "test"}.get(name, name), **style)
    axis.set_xlabel("step")
    axis.set_ylabel("loss")
    axis.set_title(title)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    save(figure, path)


def layerwise(initial: Measurement, trained: Measurement, path: Path, *, title: str) -> None:
    """R^c before and after MSSA and the non-zero fraction after ISTA, by layer, at initialisation and after training.

    Bands are one standard deviation over examples.
    """
    figure, (rate, sparsity) = plt.subplots(1, 2, figsize=(10, 3.8))
    layers = np.arange(1, len(trained["coding_rate"]["mean"]) + 1)

    def line(axis, values, color, style, marker, label):
        mean, std = np.asarray(values["mean"]), np.asarray(values["std"])
        axis.plot(layers, mean, color=color, linestyle=style, marker=marker, markersize=5, label=label)
        axis.fill_between(layers, mean - std, mean + std, color=color, alpha=0.12, linewidth=0)

    for values, color, when in ((initial, GREY, "at initialisation"), (trained, BLUE, "trained")):
        line(rate, values["coding_rate_before"], color, ":", "o", f"before MSSA, {when}")
        line(rate, values["coding_rate"], color, "-", "s", f"after MSSA, {when}")
    rate.set_ylabel(r"$R^c(Z; U_{[K]})$  (nats)")
    rate.set_title("Compression")
    line(sparsity, initial["nonzero_fraction"], GREY, "-", "s", "after ISTA, at initialisation")
    line(sparsity, trained["nonzero_fraction"], ORANGE, "-", "s", "after ISTA, trained")
    sparsity.set_ylabel(r"$\|Z\|_0 / (d\,n)$")
    sparsity.set_ylim(0, 1)
    sparsity.set_title("Sparsification")
    for axis in (rate, sparsity):
        axis.set_xlabel("layer")
        axis.set_xticks(layers)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    figure.suptitle(title)
    figure.tight_layout()
    save(figure, path)


def probe(networks: dict[str, Probe], pixels: Probe, path: Path, *, title: str) -> None:
    """Test accuracy by layer of the linear probe and of the nearest neighbours, raw pixels as a line beside them.

    Args:
      networks: what to call a network → its probe; "untrained" is drawn in grey.
      pixels: the probe of raw pixels.
      path: where to write.
      title: of the whole figure.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
    fields = {"accuracy": "Linear probe", "knn": "Nearest neighbours (k = 20)"}
    for axis, (field, name) in zip(panels, fields.items(), strict=True):
        for label, probed in networks.items():
            values, color = 100 * getattr(probed, field), GREY if label == "untrained" else BLUE
            axis.plot(
                np.arange(1, len(values) + 1), values, color=color, marker="o", markersize=5, label=label
            )
        axis.axhline(100 * getattr(pixels, field)[0], color=ORANGE, linestyle="--", label="raw pixels")
        axis.set_title(name)
        axis.set_xlabel("layer")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy  (%)")
    panels[0].legend(fontsize=9, frameon=False)
    figure.suptitle(title)
    figure.tight_layout()
    save(figure, path)
