"""Keep what README.md and docs/inside.md show of the layers of a run, and draw the README's first picture.

    python docs/inside_figure.py WORKDIR NAME "COMMAND" SECONDS COMMIT

Reads WORKDIR/report/layerwise.json; writes docs/results/layers-NAME.json, the tables of docs/inside.md between the comments
`NAME: begin` and `NAME: end`, and docs/layerwise.svg where NAME is digits.
"""

import datetime
import json
import os
import pathlib
import platform
import re
import sys

import jax
import matplotlib.pyplot as plt

from crate_jax.analysis import forms, layer_figures
from crate_jax.analysis.figures import as_svg

DOCS = pathlib.Path(__file__).parent
# The readings that are quoted or drawn; the report has the others.
KEPT = (
    r"(paper|released|scale_free)(@[\d.e+-]+)?/subspace_rate/change/attention",
    r"(paper|released|scale_free)/(random_)?(subspace_)?rate/(change|lowered)/(attention|second_half|layer)",
    r"(paper|released|scale_free)/(subspace_rate|rate|sparse_rate_reduction|ratio)/(before|after_attention|after_layer)",
    r"(frobenius_norm|effective_rank|participation_ratio|nonzero_fraction|hoyer)/after_layer",
    r"code_nonzero_fraction",
)


def kept(values: dict) -> dict:
    """The readings that are KEPT, to six digits."""
    measured = {when: values[when] for when in ("initial", "trained", "training_examples") if when in values}
    return {
        **{name: value for name, value in values.items() if name not in measured},
        **{
            when: {
                name: {key: [float(f"{x:.6g}") for x in numbers] for key, numbers in reading.items()}
                for name, reading in readings.items()
                if re.fullmatch("|".join(KEPT), name)
            }
            for when, readings in measured.items()
        },
    }


def picture(measured: dict) -> bytes:
    """MSSA's change of R^c in two forms, side by side."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for axis, form in zip(axes, ("paper", "released"), strict=True):
        layer_figures.draw_changes(axis, measured, form)
        axis.set_title(layer_figures.label_of(form))
        axis.set_xlabel("layer")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("MSSA's change of Rᶜ (%)")
    axes[0].legend(frameon=False, fontsize=9)
    figure.tight_layout()
    return as_svg(figure)


def tables(values: dict) -> str:
    """R^c of a white box layer by layer, a table for each form."""
    trained, parts = values["trained"], []
    for form in forms.FORMS:

        def mean(name, when="trained", form=form):
            return values[when][f"{form}/{name}"]["mean"]

        def percent(name, when="trained"):
            return [f"{100 * value:+.1f}" for value in mean(name, when)]

        change = trained[f"{form}/subspace_rate/change/attention"]
        columns = {
            "R^c before MSSA": [f"{value:.2f}" for value in mean("subspace_rate/before")],
            "after MSSA": [f"{value:.2f}" for value in mean("subspace_rate/after_attention")],
            "after ISTA": [f"{value:.2f}" for value in mean("subspace_rate/after_layer")],
            "MSSA’s change, %": [
                f"{100 * m:+.1f} ± {100 * s:.1f}" for m, s in zip(change["mean"], change["std"], strict=True)
            ],
            "examples where it falls, %": [
                f"{100 * value:.0f}" for value in mean("subspace_rate/lowered/attention")
            ],
            "random U, %": percent("random_subspace_rate/change/attention"),
            "untrained, %": percent("subspace_rate/change/attention", "initial"),
            "training images, %": percent("subspace_rate/change/attention", "training_examples"),
        }
        rows = [[str(n), *row] for n, row in enumerate(zip(*columns.values(), strict=True), 1)]
        lines = [["layer", *columns], ["---"] * (len(columns) + 1), *rows]
        parts.append(
            f"Form `{form}`, ε² = {forms.FORMS[form].eps_sq:g}, nats:\n\n"
            + "".join(f"| {' | '.join(line)} |\n" for line in lines)
        )
    return "\n".join(parts)


def main(workdir: str, name: str, command: str, seconds: str, commit: str) -> None:
    values = kept(
        json.loads((pathlib.Path(workdir) / "report" / "layerwise.json").read_text(encoding="utf-8"))
    )
    config = json.loads((pathlib.Path(workdir) / "config.json").read_text(encoding="utf-8"))
    record = {
        "command": command,
        "commit": commit,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "seconds": float(seconds),
        "seed": config["seed"],
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "values": values,
    }
    (DOCS / "results").mkdir(exist_ok=True)
    text = re.sub(
        r"\[\s+([^\[\]{}]*?)\s+\]",
        lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]",
        json.dumps(record, indent=1),
    )
    (DOCS / "results" / f"layers-{name}.json").write_text(text + "\n", encoding="utf-8")
    page = (DOCS / "inside.md").read_text(encoding="utf-8")
    block = re.compile(rf"(<!-- {name}: begin -->\n).*?(\n<!-- {name}: end -->)", re.DOTALL)
    if block.search(page):
        made = tables(values)
        page = block.sub(lambda found: found[1] + made + found[2], page)
        (DOCS / "inside.md").write_text(page, encoding="utf-8")
    if name == "digits":
        (DOCS / "layerwise.svg").write_bytes(picture(values))


if __name__ == "__main__":
    main(*sys.argv[1:])
