"""Code length against size, compute and what a linear probe reads: figure 2 of Chen et al. 2020, for any study."""

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
from crate_jax.analysis.linear_probe import chosen_layer
from crate_jax.runs.metrics import read_metrics, write_atomically
from crate_jax.runs.workdir import read_config, read_dataset

# The commands that every run of a study goes through, and the columns of its table.
COMMANDS = ("train", "probe")
HEADERS = (
    "run",
    "parameters",
    "epochs",
    "train nats",
    "test nats",
    "bits a pixel",
    "best layer",
    "probe %",
    "untrained %",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One run of a study. Losses in nats per token; `probe` and `untrained` are test accuracies of the layers chosen on
    held-out training data."""

    name: str
    num_params: int
    epochs: float
    train_loss: float
    test_loss: float
    bits_per_pixel: float
    probe: float
    best_layer: int
    untrained: float
    pixels: float
    curve: dict[str, list[list[float]]]  # "train" and "test": [epochs seen, nats a token]

    def cells(self) -> list:
        """What stands under HEADERS."""
        return [
            self.name,
            f"{self.num_params:,}",
            f"{self.epochs:.3g}",
            f"{self.train_loss:.4f}",
            f"{self.test_loss:.4f}",
            f"{self.bits_per_pixel:.4f}",
            self.best_layer,
            f"{100 * self.probe:.2f}",
            f"{100 * self.untrained:.2f}",
        ]


def read(workdir: Path, names: Iterable[str]) -> list[Row]:
    """The rows of a study whose runs are all done."""
    return [summarise(workdir / name, name) for name in names]


def summarise(run: Path, name: str) -> Row:
    """What a trained and probed run says.

    Args:
      run: its workdir.
      name: what to call it.
    """
    config, lines = read_config(run), read_metrics(run / "metrics.jsonl")
    per_epoch = read_dataset(run).num_examples["train"] / config.batch_size
    probes = json.loads((run / "report" / "probe.json").read_text(encoding="utf-8"))["probes"]
    layers = {kind: chosen_layer(values["validation"]) for kind, values in probes.items()}
    best = {kind: values["accuracy"][layers[kind]] for kind, values in probes.items()}
    (trained,) = set(probes) - {"untrained", "pixels"}
    curve = {
        "train": [[line["step"] / per_epoch, line["train/loss"]] for line in lines if "train/loss" in line],
        "test": [[line["step"] / per_epoch, line["eval/loss"]] for line in lines if "eval/loss" in line],
    }
    return Row(
        name=name,
        num_params=models.create(config.model).num_params,
        epochs=lines[-1]["step"] / per_epoch,
        train_loss=curve["train"][-1][1],
        test_loss=lines[-1]["eval/loss"],
        bits_per_pixel=lines[-1]["eval/bits_per_pixel"],
        probe=best[trained],
        best_layer=1 + layers[trained],
        untrained=best["untrained"],
        pixels=best["pixels"],
        curve=curve,
    )


def write(rows: Sequence[Row], workdir: Path) -> Path:
    """Write `scaling.json` and `scaling.png`; returns the path of the picture."""
    text = json.dumps([dataclasses.asdict(row) for row in rows], indent=1)
    write_atomically(workdir / "scaling.json", text + "\n")
    figure, (against_loss, against_size, curves) = plt.subplots(1, 3, figsize=(14, 4))
    sizes = sorted({row.num_params for row in rows})
    shades = dict(zip(sizes, plt.cm.viridis(np.linspace(0.1, 0.85, len(sizes))), strict=True))
    for size in sizes:
        line = sorted((row for row in rows if row.num_params == size), key=lambda row: row.epochs)
        style = {"color": shades[size], "marker": "o", "markersize": 5, "label": f"{size:,} parameters"}
        against_loss.plot([row.bits_per_pixel for row in line], [100 * row.probe for row in line], **style)
        for row in line:
            against_loss.annotate(
                f"{row.epochs:.0f}",
                (row.bits_per_pixel, 100 * row.probe),
                (4, -9),
                textcoords="offset points",
                fontsize=7,
            )
    against_loss.axhline(100 * rows[0].pixels, color=GREY, linestyle=":", label="raw pixels")
    against_loss.invert_xaxis()  # Better compression to the right.
    against_loss.set_xlabel("test code length (bits a pixel), better →")
    against_loss.set_ylabel("linear probe, best layer (%)")
    against_loss.set_title("Better compressors have more linear features\n(numbers: epochs)", fontsize=10)
    lengths = sorted({round(row.epochs) for row in rows})
    for length, shade in zip(lengths, plt.cm.plasma(np.linspace(0.1, 0.75, len(lengths))), strict=True):
        line = sorted((row for row in rows if round(row.epochs) == length), key=lambda row: row.num_params)
        against_size.plot(
            [row.num_params for row in line],
            [row.bits_per_pixel for row in line],
            color=shade,
            marker="o",
            markersize=5,
            label=f"{length} epochs",
        )
    against_size.set_xscale("log")
    against_size.set_xlabel("parameters")
    against_size.set_ylabel("test code length (bits a pixel)")
    against_size.set_title("Code length against size", fontsize=10)
    longest = max(rows, key=lambda row: (row.num_params, row.epochs))
    for kind, color in (("train", BLUE), ("test", ORANGE)):
        epochs, nats = np.array(longest.curve[kind]).T
        curves.plot(epochs, nats, color=color, label=f"{kind} loss")
    curves.axvline(1, color=GREY, linestyle=":", label="every example seen once")
    curves.set_xscale("log")
    curves.set_xlabel("epochs")
    curves.set_ylabel("nats a token")
    curves.set_title(
        f"One pass: training loss is test loss\n({longest.num_params:,} parameters)", fontsize=10
    )
    for axis in (against_loss, against_size, curves):
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    write_atomically(workdir / "scaling.png", as_png(figure))
    return workdir / "scaling.png"
