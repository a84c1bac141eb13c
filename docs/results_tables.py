"""Renew tables and pictures of docs/results.md and docs/igpt.md from docs/results: python docs/results_tables.py"""

import json
import pathlib
from collections.abc import Sequence
from statistics import mean, stdev

import matplotlib.pyplot as plt
import numpy as np

from crate_jax.analysis import figures

DOCS = pathlib.Path(__file__).parent
# Told apart without colour too.
FAMILIES = {
    "CRATE": (figures.BLUE, "o"),
    "CRATE-α": ("#009E73", "s"),
    "ToST": (figures.GREY, "D"),
    "ViT": (figures.ORANGE, "^"),
}
OBJECTIVES = {"AR": ("next pixel", figures.BLUE, "o"), "BERT": ("masked pixels", figures.ORANGE, "^")}


def values(name: str) -> dict:
    return json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))["values"]


def spread(numbers: Sequence[float], places: int) -> str:
    """Mean ± sample standard deviation."""
    return f"{mean(numbers):.{places}f} ± {stdev(numbers):.{places}f}"


def accuracies(row: dict) -> tuple[list[float], np.ndarray]:
    """Epochs, and the test accuracy after each in per cent, `[seeds, epochs]`."""
    seeds = [run["accuracy after epochs"] for run in row["seeds"]]
    return [float(epoch) for epoch in seeds[0]], 100 * np.array([list(seed.values()) for seed in seeds])


def families_table() -> list[str]:
    lines = [
        "| model | parameters | test accuracy % | of each seed | after one epoch % | test nats | training nats | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in values("cifar10-families").items():
        runs, curve = row["seeds"], accuracies(row)[1]
        cells = (
            name,
            f"{runs[0]['parameters']:,}",
            spread(row["accuracies %"], 2),
            ", ".join(f"{accuracy:.2f}" for accuracy in row["accuracies %"]),
            spread(list(curve[:, 0]), 1),
            spread(row["losses nats"], 3),
            spread([run["training loss"] for run in runs], 3),
            f"{mean(run['seconds'] for run in runs):.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def families() -> plt.Figure:
    """Test accuracy by epoch, means of the seeds with the range between them, and each seed's end."""
    figure, (curves, ends) = plt.subplots(1, 2, figsize=(10, 3.8), width_ratios=(3, 2))
    for place, (name, row) in enumerate(values("cifar10-families").items()):
        color, marker = FAMILIES[name]
        epochs, curve = accuracies(row)
        curves.plot(epochs, curve.mean(0), color=color, marker=marker, markersize=5, label=name)
        curves.fill_between(epochs, curve.min(0), curve.max(0), color=color, alpha=0.2, linewidth=0)
        final = row["accuracies %"]
        ends.plot(final, [place] * len(final), marker, color=color, alpha=0.6)
        ends.plot(row["mean %"], place, "|", color=color, markersize=18, markeredgewidth=2)
    curves.set_xlabel("epoch")
    curves.set_ylabel("test accuracy  (%)")
    curves.set_title("means of the seeds, and the range between them", fontsize=10)
    curves.legend(frameon=False)
    ends.set_yticks(range(len(FAMILIES)), list(FAMILIES))
    ends.invert_yaxis()
    ends.margins(y=0.2)
    ends.set_xlabel("test accuracy at the end  (%)")
    ends.set_title("each mark a seed, the bar their mean", fontsize=10)
    return figure


def probes(row: dict) -> dict[str, np.ndarray]:
    """What a linear probe reads off each layer in per cent, `[seeds, layers]`, of "trained" and "untrained" networks."""
    found: dict[str, list] = {"trained": [], "untrained": []}
    for run in row["seeds"]:
        for name, probe in run["probe"].items():
            if name != "pixels":
                found["untrained" if name == "untrained" else "trained"].append(probe["linear % by layer"])
    return {name: np.array(rows) for name, rows in found.items()}


def layers_table() -> list[str]:
    rows = {
        (name, kind): accuracy
        for name, row in values("igpt-ar-bert").items()
        for kind, accuracy in probes(row).items()
    }
    depth = next(iter(rows.values())).shape[1]
    lines = [
        f"| layer | {' | '.join(str(1 + layer) for layer in range(depth))} |",
        "|---" * (depth + 1) + "|",
    ]
    for (name, kind), accuracy in rows.items():
        what = OBJECTIVES[name][0] + ("" if kind == "trained" else ", untrained")
        lines.append(f"| {what}, % | {' | '.join(spread(list(layer), 1) for layer in accuracy.T)} |")
    return lines


def layers() -> plt.Figure:
    """What a linear probe reads off each layer of iGPT, trained by either objective and untrained."""
    figure, axis = plt.subplots(figsize=(6, 3.8))
    for name, row in values("igpt-ar-bert").items():
        label, color, marker = OBJECTIVES[name]
        for kind, style in (("trained", "-"), ("untrained", ":")):
            accuracy = probes(row)[kind]
            places = range(1, accuracy.shape[1] + 1)
            about = label if kind == "trained" else f"{label}, untrained"
            axis.plot(places, accuracy.mean(0), style, color=color, marker=marker, markersize=5, label=about)
            axis.fill_between(places, accuracy.min(0), accuracy.max(0), color=color, alpha=0.15, linewidth=0)
    axis.set_xlabel("layer")
    axis.set_ylabel("linear probe, test accuracy  (%)")
    axis.set_title("means of the seeds, and the range between them", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    return figure


def renew(page: str, name: str, lines: list[str]) -> None:
    """Replace what stands between the marks of a table."""
    begin, end = f"<!-- {name}: begin (docs/results_tables.py) -->", f"<!-- {name}: end -->"
    head, rest = (DOCS / page).read_text(encoding="utf-8").split(begin)
    text = head + "\n".join([begin, *lines, end]) + rest.split(end)[1]
    (DOCS / page).write_text(text, encoding="utf-8")


def main() -> None:
    renew("results.md", "families", families_table())
    renew("igpt.md", "layers", layers_table())
    for name, draw in (("results-cifar10", families), ("igpt-ar-bert", layers)):
        figure = draw()
        for axis in figure.axes:
            axis.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        (DOCS / f"{name}.png").write_bytes(figures.as_png(figure))


if __name__ == "__main__":
    main()
