"""Variants of a model side by side: accuracy over seeds, and what their layers do to the objective."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # No display on a server; must be chosen before pyplot is imported.
import matplotlib.pyplot as plt
import numpy as np

from crate_jax import models
from crate_jax.analysis.figures import BLUE, GREY, ORANGE, as_png
from crate_jax.runs.metrics import read_metrics, write_atomically
from crate_jax.runs.workdir import read_config

COMMANDS = ("train",)
HEADERS = (
    "variant",
    "parameters",
    "seeds",
    "accuracy %",
    "test nats",
    "MSSA's change of released R^c, %",
    "released R^c last / first layer",
    "non-zero, %",
)


# What a training run calls a reading, and what its report does.
NAMES = {
    "coding_rate_before": "released/subspace_rate/before",
    "coding_rate": "released/subspace_rate/after_attention",
    "nonzero_fraction": "code_nonzero_fraction",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant over its seeds; every list has one number a seed, and those of the layers are empty for black boxes.

    R^c is the metric of CRATE's released code (see `analysis.forms`). `compression`: (R^c after MSSA − before)/before,
    averaged over layers; negative where MSSA compresses by that metric. `descent`: R^c after the last MSSA over R^c after
    the first. `nonzero`: the fraction after ISTA, averaged over layers.
    """

    name: str
    num_params: int
    accuracy: list[float]
    loss: list[float]
    compression: list[float]
    descent: list[float]
    nonzero: list[float]

    def cells(self) -> list:
        """What stands under HEADERS: means, and the sample standard deviation where there is more than one seed."""
        return [
            self.name,
            f"{self.num_params:,}",
            len(self.accuracy),
            spread(self.accuracy, "{:.2f}", 100),
            spread(self.loss, "{:.3f}"),
            spread(self.compression, "{:+.1f}", 100),
            spread(self.descent, "{:.2f}"),
            spread(self.nonzero, "{:.1f}", 100),
        ]


def spread(values: Sequence[float], form: str, scale: float = 1.0) -> str:
    """`mean ± standard deviation`; the number itself when it is alone, a dash when there is none."""
    if not values:
        return "–"
    mean = form.format(scale * np.mean(values))
    return (
        mean
        if len(values) == 1
        else f"{mean} ± {form.replace('+', '').format(scale * np.std(values, ddof=1))}"
    )


def read(workdir: Path, names: Iterable[str]) -> list[Row]:
    """The rows of a study from the runs that are done; `VARIANT-SEED` is the name of a run."""
    variants: dict[str, list[Path]] = {}
    for name in names:
        lines = read_metrics(workdir / name / "metrics.jsonl")
        if lines and lines[-1].get("final", False):
            variants.setdefault(name.rpartition("-")[0], []).append(workdir / name)
    return [_row(name, runs) for name, runs in variants.items()]


def _row(name: str, runs: Sequence[Path]) -> Row:
    final = [read_metrics(run / "metrics.jsonl")[-1] for run in runs]
    layers = [run / "report" / "layerwise.json" for run in runs]
    layers = [json.loads(file.read_text(encoding="utf-8"))["trained"] for file in layers if file.is_file()]
    # Black boxes have readings too, but no U. Reports of earlier versions have other names.
    layers = [each for each in layers if "coding_rate" in each or "code_nonzero_fraction" in each]
    means = [
        {key: np.array(measured.get(NAMES[key], measured.get(key))["mean"]) for key in NAMES}
        for measured in layers
    ]
    return Row(
        name=name,
        num_params=models.create(read_config(runs[0]).model).num_params,
        accuracy=[line["eval/accuracy"] for line in final],
        loss=[line["eval/loss"] for line in final],
        compression=[float(np.mean(m["coding_rate"] / m["coding_rate_before"] - 1)) for m in means],
        descent=[float(m["coding_rate"][-1] / m["coding_rate"][0]) for m in means],
        nonzero=[float(np.mean(m["nonzero_fraction"])) for m in means],
    )


def write(rows: Sequence[Row], workdir: Path) -> Path:
    """Write `ablation.json` and `ablation.png`; returns the path of the picture."""
    text = json.dumps([dataclasses.asdict(row) for row in rows], indent=1)
    write_atomically(workdir / "ablation.json", text + "\n")
    rows = sorted(rows, key=lambda row: np.mean(row.accuracy))
    figure, (accuracy, rate) = plt.subplots(1, 2, figsize=(10, 0.32 * len(rows) + 1.2), sharey=True)
    for place, row in enumerate(rows):
        for axis, values, color in ((accuracy, row.accuracy, BLUE), (rate, row.compression, ORANGE)):
            axis.plot(
                100 * np.array(values), [place] * len(values), "o", color=color, markersize=4, alpha=0.5
            )
            if values:
                axis.plot(100 * np.mean(values), place, "|", color=color, markersize=14, markeredgewidth=2)
    rate.axvline(0, color=GREY, linestyle=":")
    accuracy.set_yticks(range(len(rows)), [row.name for row in rows])
    accuracy.set_xlabel("test accuracy (%)")
    rate.set_xlabel("MSSA's change of $R^c$ (released metric), mean over layers (%)")
    for axis in (accuracy, rate):
        axis.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    accuracy.set_title("Each dot a seed, the bar their mean", fontsize=10)
    rate.set_title("Left of zero MSSA compresses by that metric", fontsize=10)
    figure.tight_layout()
    write_atomically(workdir / "ablation.png", as_png(figure))
    return workdir / "ablation.png"
