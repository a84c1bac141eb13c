"""Draw docs/results-cifar10.png: python docs/results_figure.py CRATE_WORKDIR VIT_WORKDIR."""

import pathlib
import sys

import matplotlib.pyplot as plt

from crate_jax.analysis import figures
from crate_jax.runs import workdir
from crate_jax.runs.metrics import read_metrics


def points(lines: list[dict], key: str, epochs_per_step: float) -> tuple[list[float], list[float]]:
    found = [line for line in lines if key in line and not line.get("final")]
    return [line["step"] * epochs_per_step for line in found], [line[key] for line in found]


def main(folders: list[str]) -> None:
    figure, (accuracy, loss) = plt.subplots(1, 2, figsize=(10, 3.8))
    for folder, name, color in zip(folders, ("CRATE", "ViT"), (figures.BLUE, figures.ORANGE), strict=True):
        path = pathlib.Path(folder)
        lines = read_metrics(path / "metrics.jsonl")
        examples = workdir.read_dataset(path).num_examples["train"]
        per_step = workdir.read_config(path).batch_size / examples
        epochs, values = points(lines, "eval/accuracy", per_step)
        accuracy.plot(epochs, [100 * value for value in values], color=color, marker="o", label=name)
        loss.plot(*points(lines, "train/loss", per_step), color=color, alpha=0.4, label=f"{name}, training")
        loss.plot(*points(lines, "eval/loss", per_step), color=color, marker="o", label=f"{name}, test")
    accuracy.set_ylabel("test accuracy  (%)")
    loss.set_ylabel("cross-entropy  (nats)")
    for axis in (accuracy, loss):
        axis.set_xlabel("epoch")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.tight_layout()
    pathlib.Path(__file__).with_name("results-cifar10.png").write_bytes(figures.as_png(figure))


if __name__ == "__main__":
    main(sys.argv[1:])
