"""Draw docs/results-cifar10.png and docs/igpt-cifar10-layers.png from docs/results: python docs/results_figure.py"""

import json
import pathlib

import matplotlib.pyplot as plt
import numpy as np

from crate_jax.analysis import figures

DOCS = pathlib.Path(__file__).parent
# Told apart without colour too.
STYLES = {
    "CRATE": (figures.BLUE, "o"),
    "CRATE-α": ("#009E73", "s"),
    "ToST": (figures.GREY, "D"),
    "ViT": (figures.ORANGE, "^"),
}


def values(name: str) -> dict:
    return json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))["values"]


def families() -> plt.Figure:
    """Test accuracy by epoch, means of the seeds with the range between them, and each seed's end."""
    figure, (curves, ends) = plt.subplots(1, 2, figsize=(10, 3.8), width_ratios=(3, 2))
    for place, (name, row) in enumerate(values("cifar10-families").items()):
        color, marker = STYLES[name]
        seeds = [run["accuracy after epochs"] for run in row["seeds"]]
        epochs = [float(epoch) for epoch in seeds[0]]
        accuracy = 100 * np.array([list(seed.values()) for seed in seeds])
        curves.plot(epochs, accuracy.mean(0), color=color, marker=marker, markersize=4, label=name)
        curves.fill_between(epochs, accuracy.min(0), accuracy.max(0), color=color, alpha=0.2, linewidth=0)
        final = row["accuracies %"]
        ends.plot(final, [place] * len(final), marker, color=color, alpha=0.6)
        ends.plot(row["mean %"], place, "|", color=color, markersize=18, markeredgewidth=2)
    curves.set_xlabel("epoch")
    curves.set_ylabel("test accuracy  (%)")
    curves.set_title("means of the seeds, and the range between them", fontsize=10)
    curves.legend(frameon=False)
    ends.set_yticks(range(len(STYLES)), list(STYLES))
    ends.invert_yaxis()
    ends.margins(y=0.2)
    ends.set_xlabel("test accuracy at the end  (%)")
    ends.set_title("each mark a seed, the bar their mean", fontsize=10)
    return figure


def layers() -> plt.Figure:
    """What a linear probe reads off each layer of iGPT, trained by either objective and untrained."""
    figure, axis = plt.subplots(figsize=(6, 3.8))
    names = {"AR": ("next pixel", figures.BLUE, "o"), "BERT": ("masked pixels", figures.ORANGE, "^")}
    for key, row in values("igpt-cifar10").items():
        label, color, marker = names[key]
        probes = row["seeds"][0]["probe"]
        trained = next(probe for name, probe in probes.items() if name not in ("untrained", "pixels"))
        for probe, style in ((trained, "-"), (probes["untrained"], ":")):
            accuracy = probe["linear % by layer"]
            about = label if style == "-" else f"{label}, untrained"
            axis.plot(
                range(1, len(accuracy) + 1),
                accuracy,
                style,
                color=color,
                marker=marker,
                markersize=5,
                label=about,
            )
        if key == "AR":
            axis.axhline(probes["pixels"]["linear %"], color=figures.GREY, linestyle="--", label="raw pixels")
    axis.set_xlabel("layer")
    axis.set_ylabel("linear probe, test accuracy  (%)")
    axis.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    for name, draw in (("results-cifar10", families), ("igpt-cifar10-layers", layers)):
        figure = draw()
        for axis in figure.axes:
            axis.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        (DOCS / f"{name}.png").write_bytes(figures.as_png(figure))


if __name__ == "__main__":
    main()
