"""Several runs side by side on one page: what they reached, how they differ, and curves of the same reading together."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crate_jax.analysis import figures, layer_figures
from crate_jax.reports.base import Figure, Table
from crate_jax.reports.page import Shown, reader, render_several
from crate_jax.runs.metrics import read_metrics, write_atomically

PAGE = "together.html"
# Readings of `analysis.layerwise` that are drawn together, and what their axis says.
READINGS = {
    "paper/subspace_rate/change/attention": ("MSSA's change of Rᶜ: paper, ε² = 0.5", "change (%)", 100),
    "released/subspace_rate/change/attention": (
        "MSSA's change of Rᶜ: released, ε² = 0.01",
        "change (%)",
        100,
    ),
    "scale_free/subspace_rate/change/attention": (
        "MSSA's change of Rᶜ: scale-free, ε² = 0.5",
        "change (%)",
        100,
    ),
    "paper/rate/after_layer": ("R after the layer: paper, ε² = 0.5", "nats", 1),
    "scale_free/rate/after_layer": ("R after the layer: scale-free, ε² = 0.5", "nats", 1),
    "effective_rank/after_layer": ("Effective rank after the layer", "exp(entropy) of the energies", 1),
    "nonzero_fraction/after_layer": ("Entries that are not zero after the layer", "fraction", 1),
    "hoyer/after_layer": ("Hoyer's sparseness after the layer", "0 dense … 1 one entry", 1),
}


def write(workdirs: Sequence[Path], output: Path) -> None:
    """The page of several runs whose reports have been made, and its figures beside it.

    Args:
      workdirs: two folders of runs or more.
      output: the HTML file.
    """
    runs = [
        Shown(
            name,
            json.loads((path / "report" / "report.json").read_text(encoding="utf-8")),
            reader(path / "report"),
        )
        for name, path in zip(names(workdirs), workdirs, strict=True)
    ]
    drawn = drawings(runs, [read_metrics(path / "metrics.jsonl") for path in workdirs])
    section = {
        "name": "overview",
        "title": "Together",
        "text": "What the runs reached on their own test sets, the settings in which they differ, and the same readings "
        "of all of them in one picture. Bands are one standard deviation over examples.",
        "tables": [table._asdict() for table in (reached(runs), differences(runs))],
        "figures": [{"file": each.file, "alt": each.alt} for each in drawn],
    }
    overview = Shown("", {"sections": [section]}, {each.file: each.image for each in drawn}.__getitem__)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, render_several(runs, overview))


def names(workdirs: Sequence[Path]) -> list[str]:
    """The folders' names; with those above them where two have the same."""
    parts = [path.resolve().parts for path in workdirs]
    length = next(
        n for n in range(1, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(parts)
    )
    return [os.path.join(*part[-length:]) for part in parts]


def reached(runs: Sequence[Shown]) -> Table:
    """Size, step and every metric of the last evaluation."""
    about = [run.report["run"] for run in runs]
    metrics = dict.fromkeys(name for each in about for name in each["evaluation"] if name != "count")
    rows = [
        ["model and data", *(each["title"] for each in about)],
        ["parameters", *(f"{each['parameters']:,}" for each in about)],
        ["step", *(f"{each['step']:,}" for each in about)],
        ["test examples", *(f"{each['evaluation'].get('count', 0):,.0f}" for each in about)],
        *(
            [
                f"test {name.replace('_', ' ')}",
                *(f"{each['evaluation'][name]:.4f}" if name in each["evaluation"] else "–" for each in about),
            ]
            for name in metrics
        ),
    ]
    return Table("what the runs reached", ["", *(run.name for run in runs)], rows)


def differences(runs: Sequence[Shown]) -> Table:
    """The settings that are not the same in all runs."""
    flat = [dotted(run.report["run"]["config"]) for run in runs]
    keys = [key for key in dict.fromkeys(key for each in flat for key in each)]
    rows = [
        [key, *(str(each.get(key, "–")) for each in flat)]
        for key in keys
        if len({json.dumps(each.get(key)) for each in flat}) > 1
    ]
    return Table("settings in which they differ", ["setting", *(run.name for run in runs)], rows)


def dotted(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key → value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def drawings(runs: Sequence[Shown], lines: Sequence[Sequence[dict]]) -> list[Figure]:
    """Losses, and every one of the READINGS that two runs or more have."""
    found = []
    curves = {
        run.name: each
        for run, each in zip(runs, lines, strict=True)
        if any("train/loss" in line for line in each)
    }
    if len(curves) > 1:
        alt = f"Training and test loss by step of {' and '.join(curves)}."
        found.append(Figure("together-loss.svg", figures.losses_together(curves), alt))
    measured = {}
    for run in runs:
        section = run.section("layerwise")
        if section is not None and section.get("values"):
            measured[run.name] = section["values"]["trained"]
    for number, (name, (title, ylabel, scale)) in enumerate(READINGS.items()):
        have = {run: values[name] for run, values in measured.items() if name in values}
        if have and (len(have) > 1 or "subspace" in name):
            ends = ", ".join(f"{run} {scale * values['mean'][-1]:.4g}" for run, values in have.items())
            drawn = layer_figures.together(have, title, ylabel, scale)
            found.append(
                Figure(f"together-{number}.svg", drawn, f"{title}, by layer; in the last layer: {ends}.")
            )
    return found
