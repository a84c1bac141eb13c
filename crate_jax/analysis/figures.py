"""Figures of what was measured. Each function returns the bytes of a PNG or of an SVG; the caller says where they go."""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")  # No display on a server; must be chosen before pyplot is imported.
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from crate_jax.analysis.linear_probe import Probe

# Colour-blind safe (Okabe and Ito).
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"


def as_png(figure) -> bytes:
    """The figure as a PNG; it is closed."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=144, bbox_inches="tight")
    plt.close(figure)
    return file.getvalue()


def as_svg(figure) -> bytes:
    """The figure as an SVG without a background, whose ink follows the reader's light or dark theme; it is closed.

    The same figure gives the same bytes. Its text stays text, in the reader's sans-serif: write ε² and Rᶜ as characters.
    """
    file = io.StringIO()
    options = {"svg.fonttype": "none", "svg.hashsalt": "crate_jax", "font.family": "sans-serif"}
    with matplotlib.rc_context(options):
        figure.savefig(file, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    plt.close(figure)
    text = re.sub(r"(?i)(?<=[:\s\"])(#000000|black)\b", "currentColor", file.getvalue())
    # Text without a colour of its own is black too.
    theme = "svg{color:#1a1d21;fill:currentColor}@media(prefers-color-scheme:dark){svg{color:#e6e9ed}}"
    return text.replace("<defs>", f"<defs>\n  <style>{theme}</style>", 1).encode()


def losses(lines: Sequence[Mapping[str, float]], *, title: str) -> bytes:
    """An SVG of the training loss, averaged between logs, and the test loss, by step; `lines`: those of `metrics.jsonl`."""
    figure, axis = plt.subplots(figsize=(5.2, 3.4))
    for name, color, style in (("train", BLUE, {}), ("eval", ORANGE, {"marker": "o", "markersize": 5})):
        points = [(line["step"], line[f"{name}/loss"]) for line in lines if f"{name}/loss" in line]
        if points:
            axis.plot(
                *zip(*points, strict=True), color=color, label={"eval": "test"}.get(name, name), **style
            )
    axis.set_xlabel("step")
    axis.set_ylabel("loss")
    axis.set_title(title)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return as_svg(figure)


def known_entropy(
    steps: np.ndarray, excess: np.ndarray, floor: np.ndarray, answer: int, learned: float, *, title: str
) -> bytes:
    """The loss of each position in two parts, and the part that can be learned by training step.

    Args:
      steps: `[m]`, of the evaluations.
      excess: `[m, n]`, the loss above the entropy at each of them, by position, in nats.
      floor: `[n]`, that entropy.
      answer: the position from which on each has a curve.
      learned: the excess below which a position counts as learned.
      title: of the whole figure.
    """
    figure, (parts, whole, curves) = plt.subplots(1, 3, figsize=(14, 3.8))
    positions, mean = np.arange(1, len(floor) + 1), float(np.mean(floor))
    first, last = (np.maximum(row, 0) for row in (excess[0], excess[-1]))
    parts.bar(positions, floor, color=GREY, label="aleatoric: entropy of the data")
    parts.bar(positions, last, bottom=floor, color=ORANGE, label=f"epistemic at step {steps[-1]:,}")
    outline = {"fill": False, "edgecolor": BLUE, "linestyle": ":"}
    parts.bar(positions, first, bottom=floor, label=f"epistemic at step {steps[0]:,}", **outline)
    parts.set_ylim(0, 1.5 * np.max(floor + first))
    parts.set_xticks(positions[:: -(-len(positions) // 14)])
    parts.tick_params(axis="x", labelsize=7)
    parts.set_xlabel("position")
    parts.set_ylabel("test loss (nats)")
    parts.set_title("What each position costs", fontsize=10)
    losses = mean + excess.mean(axis=1)
    whole.fill_between(steps, 0, mean, color=GREY, alpha=0.6, linewidth=0, label=f"aleatoric: {mean:.4f}")
    whole.fill_between(steps, mean, losses, color=ORANGE, alpha=0.6, linewidth=0, label="epistemic")
    whole.plot(steps, losses, color=BLUE, label=f"test loss, {losses[-1]:.4f} at the end")
    whole.set_ylim(0, 1.3 * losses.max())
    whole.set_xlabel("step")
    whole.set_ylabel("nats per token")
    whole.set_title("Mean of all positions", fontsize=10)
    shown = range(answer, len(floor))
    for position, shade in zip(shown, plt.cm.viridis(np.linspace(0, 0.9, len(shown))), strict=True):
        # Below a ten-thousandth of a nat there is nothing to see but noise.
        curve = np.maximum(excess[:, position], 1e-4)
        curves.plot(steps, curve, color=shade, marker="o", markersize=3, label=f"position {position + 1}")
    curves.axhline(learned, color=GREY, linestyle=":", label="learned below this")
    curves.set_yscale("log")
    curves.set_xscale("log")
    curves.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    curves.xaxis.set_major_formatter("{x:,.0f}")
    curves.xaxis.set_minor_locator(ticker.NullLocator())
    curves.set_xlabel("step")
    curves.set_ylabel("epistemic part (nats)")
    curves.set_title("When each position of the answer is learned", fontsize=10)
    for axis in (parts, whole, curves):
        axis.spines[["top", "right"]].set_visible(False)
    parts.legend(fontsize=8, frameon=False)
    whole.legend(fontsize=8, frameon=False)
    curves.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title)
    figure.tight_layout()
    return as_png(figure)


def losses_together(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """An SVG of the losses of several runs by step, each in a colour: training thin, test with marks.

    Args:
      runs: what to call a run → the lines of its `metrics.jsonl`.
    """
    figure, axis = plt.subplots(figsize=(5.2, 3.4))
    for number, (run, lines) in enumerate(runs.items()):
        color = plt.get_cmap("tab10")(number % 10)
        for name, style in (("train", {"alpha": 0.45}), ("eval", {"marker": "o", "markersize": 4})):
            points = [(line["step"], line[f"{name}/loss"]) for line in lines if f"{name}/loss" in line]
            if points:
                label = f"{run}, {'test' if name == 'eval' else 'training'}"
                axis.plot(*zip(*points, strict=True), color=color, label=label, **style)
    axis.set_xlabel("step")
    axis.set_ylabel("loss")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    return as_svg(figure)


def probe(networks: dict[str, Probe], pixels: Probe, *, title: str) -> bytes:
    """Test accuracy by layer of the linear probe and of the nearest neighbours, raw pixels as a line beside them.

    Args:
      networks: what to call a network → its probe; "untrained" is drawn in grey.
      pixels: the probe of raw pixels.
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
    return as_png(figure)


def subspaces(overlap: np.ndarray, energy: np.ndarray, *, chance: float) -> bytes:
    """How much each subspace has in common with the others, and the share of the tokens' energy in it, by layer.

    Args:
      overlap: `[layers, k, k]`, mean squared cosines (see `analysis.subspaces`).
      energy: `[layers, k]`.
      chance: p/d, what both are for random subspaces and tokens of no direction.
    Returns:
      an SVG.
    """
    depth, heads = energy.shape
    figure, panels = plt.subplots(2, 1, figsize=(5.6, 5.8), sharex=True)  # One above the other, for phones.
    layers = np.arange(1, depth + 1)
    others = (overlap.sum(axis=-1) - np.einsum("lkk->lk", overlap)) / max(heads - 1, 1)
    for axis, values, color, title in (
        (panels[0], others, BLUE, "Overlap of a head's subspace with the others"),
        (panels[1], energy, ORANGE, "Share of the tokens' energy in a subspace"),
    ):
        axis.plot(layers, values, color=color, alpha=0.35, linewidth=1)
        axis.plot(
            layers,
            values.mean(axis=1),
            color=color,
            marker="o",
            markersize=5,
            linewidth=2,
            label="mean of heads",
        )
        axis.axhline(chance, color=GREY, linestyle="--", label="chance, p/d")
        axis.set_title(title, fontsize=11)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylim(0, None)
        axis.spines[["top", "right"]].set_visible(False)
    panels[1].set_xlabel("layer")
    panels[0].legend(fontsize=9, frameon=False)
    figure.tight_layout()
    return as_svg(figure)


def heads(change: np.ndarray, first: int = 0) -> bytes:
    """A number for each head, `[layers, heads]`, as a table of shades, layers numbered from `first` + 1; an SVG."""
    depth, count = change.shape
    figure, axis = plt.subplots(figsize=(1.6 + 0.62 * count, 1.1 + 0.42 * depth))
    axis.pcolormesh(change, cmap="cividis", vmin=0, edgecolors="none")
    middle = change.max() / 2
    for layer, head in np.ndindex(change.shape):
        # Named colours would follow the reader's theme; these stand on the shades.
        ink = "#111111" if change[layer, head] > middle else "#f5f5f5"
        axis.text(
            head + 0.5,
            layer + 0.5,
            f"{change[layer, head]:.2f}",
            ha="center",
            va="center",
            color=ink,
            fontsize=8,
        )
    axis.set_xticks(np.arange(count) + 0.5, np.arange(count) + 1)
    axis.set_yticks(np.arange(depth) + 0.5, first + np.arange(depth) + 1)
    axis.invert_yaxis()
    axis.set_xlabel("head")
    axis.set_ylabel("layer")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    return as_svg(figure)
