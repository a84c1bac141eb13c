"""How far models of several sizes stay above the entropy of data that are made."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # No display on a server; must be chosen before pyplot is imported.
import matplotlib.pyplot as plt

from crate_jax import InputError, models
from crate_jax.analysis.figures import BLUE, ORANGE, as_png
from crate_jax.runs.metrics import read_metrics, write_atomically
from crate_jax.runs.workdir import read_config

# The commands that every run of a study goes through, and the columns of its table.
COMMANDS = ("train",)
HEADERS = (
    "run",
    "parameters",
    "steps",
    "test loss (nats per token)",
    "excess",
    "answer loss",
    "exact match %",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One run of a study. Losses in nats per token; `excess` is the test loss less the entropy of the data."""

    name: str
    num_params: int
    steps: int
    loss: float
    excess: float
    answer_loss: float
    exact_match: float

    def cells(self) -> list:
        """What stands under HEADERS."""
        return [
            self.name,
            f"{self.num_params:,}",
            f"{self.steps:,}",
            f"{self.loss:.4f}",
            f"{self.excess:+.5f}",
            f"{self.answer_loss:.5f}",
            f"{100 * self.exact_match:.2f}",
        ]


def read(workdir: Path, names: Iterable[str]) -> list[Row]:
    """The rows of a study whose runs are all done.

    Raises:
      InputError: a run on data whose entropy nobody knows.
    """
    return [summarise(workdir / name, name) for name in names]


def summarise(run: Path, name: str) -> Row:
    """What the last evaluation of a trained run says.

    Args:
      run: its workdir.
      name: what to call it.
    Raises:
      InputError: a run on data whose entropy nobody knows.
    """
    config = read_config(run)
    last = [line for line in read_metrics(run / "metrics.jsonl") if "eval/loss" in line][-1]
    if "eval/exact_match" not in last or "eval/excess" not in last:
        raise InputError(
            f"{run}: found data {config.data.name}; accepted: data of known entropy, addition:OPTIONS"
        )
    return Row(
        name=name,
        num_params=models.create(config.model).num_params,
        steps=last["step"],
        loss=last["eval/loss"],
        excess=last["eval/excess"],
        answer_loss=last["eval/answer_loss"],
        exact_match=last["eval/exact_match"],
    )


def write(rows: Sequence[Row], workdir: Path) -> Path:
    """Write `excess.json` and `excess.png`; returns the path of the picture."""
    text = json.dumps([dataclasses.asdict(row) for row in rows], indent=1)
    write_atomically(workdir / "excess.json", text + "\n")
    figure, (above, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    line = sorted(rows, key=lambda row: row.num_params)
    sizes = [row.num_params for row in line]
    above.plot(sizes, [row.excess for row in line], color=ORANGE, marker="o")
    above.set_yscale("log")
    above.set_ylabel("test loss above the entropy (nats per token)")
    above.set_title("What the model does not know", fontsize=10)
    right.plot(sizes, [100 * row.exact_match for row in line], color=BLUE, marker="o")
    right.set_ylim(0, 105)
    right.set_ylabel("answers right in every symbol (%)")
    right.set_title("What it can do", fontsize=10)
    for axis in (above, right):
        axis.set_xscale("log")
        axis.set_xlabel("parameters")
        axis.spines[["top", "right"]].set_visible(False)
        for row in line:
            y = row.excess if axis is above else 100 * row.exact_match
            axis.annotate(row.name, (row.num_params, y), (4, 4), textcoords="offset points", fontsize=8)
    figure.tight_layout()
    write_atomically(workdir / "excess.png", as_png(figure))
    return workdir / "excess.png"
