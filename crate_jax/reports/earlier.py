"""What other commands left in the run's `report/` folder: probes and samples."""

import json
from pathlib import Path

from crate_jax.analysis.linear_probe import chosen_layer
from crate_jax.reports.base import Figure, SectionResult, Table, TrainedRun

SAMPLES = {
    "samples.png": "Images that the model drew, without a prompt.",
    "completions.png": "Given upper rows, the model's completion, the original, side by side.",
}


def probe(trained: TrainedRun) -> SectionResult | None:
    """The accuracies that `crate_jax.probe` wrote."""
    folder = trained.run.workdir / "report"
    if not (folder / "probe.json").is_file():
        return None
    probes = json.loads((folder / "probe.json").read_text(encoding="utf-8"))["probes"]
    depth = max(len(values["accuracy"]) for values in probes.values())
    networks = {name: values for name, values in probes.items() if name != "pixels"}
    rows = [
        [layer + 1, *(f"{100 * values['accuracy'][layer]:.2f}" for values in networks.values())]
        for layer in range(depth)
    ]
    pixels = 100 * probes["pixels"]["accuracy"][0]
    best = {
        name: 100 * values["accuracy"][chosen_layer(values["validation"])]
        for name, values in networks.items()
    }
    alt = "Accuracy of linear probes and nearest neighbours by layer; layers chosen on held-out training images: "
    alt += (
        ", ".join(f"{name} {value:.2f} %" for name, value in best.items()) + f"; raw pixels {pixels:.2f} %."
    )
    return SectionResult(
        title="Linear probes",
        text="Test accuracy of a linear classifier on the features of each layer, trained and untrained. "
        f"On raw pixels it is {pixels:.2f} %. Made by the probe command.",
        tables=[Table("test accuracy of a linear probe (%)", ["layer", *networks], rows)],
        figures=_pictures(folder, {"probe.png": alt}),
    )


def samples(trained: TrainedRun) -> SectionResult | None:
    """The pictures or the text that `crate_jax.sample` wrote."""
    folder = trained.run.workdir / "report"
    figures, file = _pictures(folder, SAMPLES), folder / "samples.txt"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    if not (figures or text):
        return None
    rows = [[number, each] for number, each in enumerate(text.split("\n\n"), 1)] if text else []
    return SectionResult(
        title="Samples",
        text="Drawn from the model by the sample command.",
        tables=[Table("text that the model wrote", ["", "text"], rows)] if rows else [],
        figures=figures,
    )


def _pictures(folder: Path, alts: dict[str, str]) -> list[Figure]:
    return [
        Figure(name, (folder / name).read_bytes(), alt)
        for name, alt in alts.items()
        if (folder / name).is_file()
    ]
