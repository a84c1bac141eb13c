"""Drawings of what `layerwise` measures, each the bytes of an SVG. They are small, so that a phone shows them whole."""

from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")  # No display on a server; must be chosen before pyplot is imported.
import matplotlib.pyplot as plt
import numpy as np

from crate_jax.analysis import forms
from crate_jax.analysis.figures import BLUE, GREY, ORANGE, as_svg
from crate_jax.analysis.layerwise import Measurement
from crate_jax.models.trace import POINTS

GREEN = "#009E73"
NAMES = {"paper": "paper", "released": "released", "scale_free": "scale-free"}
SYMBOLS = {
    "rate": "R",
    "subspace_rate": "Rᶜ",
    "rate_reduction": "R − Rᶜ",
    "sparse_rate_reduction": "R − Rᶜ − λ‖Z‖₀",
    "ratio": "Rᶜ/R",
}
STATISTICS = {
    "frobenius_norm": ("Norm of the tokens", "‖Z‖ (Frobenius)"),
    "effective_rank": ("Effective rank", "exp(entropy) of the energies"),
    "participation_ratio": ("Participation ratio", "1/Σ share²"),
    "nonzero_fraction": ("Entries that are not zero", "fraction"),
    "hoyer": ("Hoyer's sparseness of a token", "0 dense … 1 one entry"),
}
# Point → marker and line.
MARKS = {
    "before": ("o", (0, (1, 2))),
    "after_attention": ("s", "-"),
    "after_layer": ("^", (0, (4, 2))),
}


def label_of(form: str, factor: float = 1.0) -> str:
    """Such as "paper, ε² = 0.5"."""
    return f"{NAMES[form]}, ε² = {factor * forms.FORMS[form].eps_sq:g}"


def _panel(title: str, ylabel: str, depth: int):
    figure, axis = plt.subplots(figsize=(4.8, 3.2))
    axis.set_title(title, fontsize=11)
    axis.set_xlabel("layer")
    axis.set_ylabel(ylabel)
    if depth:
        axis.set_xlim(0.5, depth + 0.5)
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, nbins=8))
    axis.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _draw(axis, values, *, scale=1.0, band=True, **style) -> None:
    mean, std = (scale * np.asarray(values[key], np.float64) for key in ("mean", "std"))
    layers = np.arange(1, len(mean) + 1)
    axis.plot(layers, mean, markersize=4.5, **style)
    if band:
        axis.fill_between(layers, mean - std, mean + std, color=style["color"], alpha=0.13, linewidth=0)


def _legend(axis, ncols: int = 2) -> None:
    """Below the panel, where it hides nothing."""
    axis.legend(
        fontsize=9,
        frameon=False,
        ncols=ncols,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.18),
        handlelength=2.6,
    )


def draw_changes(axis, measured: Mapping[str, Measurement], form: str) -> None:
    """By how many percent MSSA changes R^c of a form, with both nulls."""
    key = f"{form}/subspace_rate/change/attention"
    axis.axhline(0, color=GREY, linewidth=0.8)
    _draw(
        axis,
        measured["initial"][key],
        scale=100,
        color=GREY,
        marker="o",
        band=False,
        label="untrained network",
    )
    null = f"{form}/random_subspace_rate/change/attention"
    _draw(
        axis, measured["trained"][null], scale=100, color=ORANGE, marker="D", linestyle=":", band=False,
        label="trained, random U",
    )  # fmt: skip
    if "training_examples" in measured:
        _draw(
            axis, measured["training_examples"][key], scale=100, color=GREEN, marker="x", linestyle="--",
            band=False, label="trained, training images",
        )  # fmt: skip
    _draw(axis, measured["trained"][key], scale=100, color=BLUE, marker="s", label="trained")


def changes(measured: Mapping[str, Measurement], form: str) -> bytes:
    """What MSSA does to R^c of a form; the band is one standard deviation over examples."""
    depth = len(measured["trained"]["code_nonzero_fraction"]["mean"])
    figure, axis = _panel(f"MSSA's change of Rᶜ: {label_of(form)}", "change (%)", depth)
    draw_changes(axis, measured, form)
    _legend(axis)
    return as_svg(figure)


def _draw_points(axis, measured: Mapping[str, Measurement], name: str, steps: Sequence[str]) -> None:
    """A reading at the points of a layer: trained in blue, untrained in grey with the same marks."""
    words = dict(zip(POINTS, (f"before {steps[0]}", f"after {steps[0]}", f"after {steps[1]}"), strict=True))
    for when, color in (("initial", GREY), ("trained", BLUE)):
        for point in (point for point in POINTS if f"{name}/{point}" in measured[when]):
            marker, line = MARKS[point]
            label = words[point] if when == "trained" else None
            values = measured[when][f"{name}/{point}"]
            _draw(
                axis, values, color=color, marker=marker, linestyle=line, band=when == "trained", label=label
            )
    axis.plot([], [], color=GREY, linewidth=2, label="untrained, same marks")


def rates(measured: Mapping[str, Measurement], form: str, quantity: str, steps: Sequence[str]) -> bytes:
    """A rate at the points of a layer in the trained network, and in grey in the untrained one; R^c with random U too.

    Args:
      measured: "trained" and "initial".
      steps: what the two halves of a layer are called.
    """
    depth = len(next(iter(measured["trained"].values()))["mean"])
    unit = "" if quantity == "ratio" else " (nats)"
    figure, axis = _panel(f"{SYMBOLS[quantity]}: {label_of(form)}", SYMBOLS[quantity] + unit, depth)
    _draw_points(axis, measured, f"{form}/{quantity}", steps)
    if quantity == "subspace_rate":
        values = measured["trained"][f"{form}/random_subspace_rate/after_attention"]
        label = f"after {steps[0]}, random U"
        _draw(axis, values, color=ORANGE, marker="D", linestyle=":", band=False, label=label)
    _legend(axis)
    return as_svg(figure)


def sweep(trained: Measurement, form: str) -> bytes:
    """MSSA's change of R^c of a form for ε² over decades."""
    depth = len(trained["code_nonzero_fraction"]["mean"])
    figure, axis = _panel(f"MSSA's change of Rᶜ over ε²: {NAMES[form]}", "change (%)", depth)
    axis.axhline(0, color=GREY, linewidth=0.8)
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(forms.DECADES)))
    for factor, color in zip(forms.DECADES, shades, strict=True):
        label = form if factor == 1 else f"{form}@{factor * forms.FORMS[form].eps_sq:g}"
        values = trained[f"{label}/subspace_rate/change/attention"]
        name = f"ε² = {factor * forms.FORMS[form].eps_sq:g}"
        _draw(axis, values, scale=100, band=False, color=color, marker="o", label=name)
    _legend(axis, ncols=3)
    return as_svg(figure)


def statistic(measured: Mapping[str, Measurement], name: str, steps: Sequence[str]) -> bytes:
    """A statistic of the tokens at the points of a layer, trained and untrained."""
    title, ylabel = STATISTICS[name]
    figure, axis = _panel(title, ylabel, len(next(iter(measured["trained"].values()))["mean"]))
    _draw_points(axis, measured, name, steps)
    _legend(axis)
    return as_svg(figure)


def together(measured: Mapping[str, Mapping], title: str, ylabel: str, scale: float = 1.0) -> bytes:
    """One reading of several runs; `measured` is name of a run → mean and standard deviation by layer."""
    figure, axis = _panel(title, ylabel, max(len(values["mean"]) for values in measured.values()))
    colors = plt.get_cmap("tab10")
    for number, (run, values) in enumerate(measured.items()):
        _draw(axis, values, scale=scale, color=colors(number % 10), marker="os^Dv"[number % 5], label=run)
    if "change" in ylabel:
        axis.axhline(0, color=GREY, linewidth=0.8)
    _legend(axis)
    return as_svg(figure)


def over_training(lines: Sequence[Mapping[str, float]], before: str, after: str, title: str) -> bytes | None:
    """MSSA's change of a rate by training step, a line for each layer; None where fewer than two steps were read."""
    read = [line for line in lines if f"layer/00/{before}" in line and f"layer/00/{after}" in line]
    if len(read) < 2:
        return None
    depth = sum(1 for key in read[0] if key.startswith("layer/") and key.endswith(f"/{after}"))
    figure, axis = _panel(title, "change (%)", 0)
    axis.axhline(0, color=GREY, linewidth=0.8)
    steps = [line["step"] for line in read]
    for layer, color in enumerate(plt.get_cmap("viridis")(np.linspace(0, 0.85, depth))):
        names = (f"layer/{layer:02d}/{name}" for name in (before, after))
        first, last = (np.array([line[name] for line in read]) for name in names)
        axis.plot(
            steps, 100 * (last / first - 1), color=color, marker="o", markersize=3, label=f"layer {layer + 1}"
        )
    axis.set_xlabel("training step")
    if depth <= 12:
        _legend(axis, ncols=3)
    return as_svg(figure)
