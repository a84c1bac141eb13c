"""The report as one HTML file that needs no network and no other file: of one run, or of several side by side."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("crate_jax.reports", "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


class Shown(NamedTuple):
    """A run's report as a page shows it.

    Attributes:
      name: what the run is called beside the others.
      report: what stands in `report.json`: "run" and "sections".
      read: from the name of a figure's file to its bytes, which are put into the page.
    """

    name: str
    report: Mapping[str, Any]
    read: Callable[[str], bytes]

    def section(self, name: str) -> Mapping[str, Any] | None:
        """A section of the report, None where it does not apply to the run."""
        return next((each for each in self.report["sections"] if each["name"] == name), None)

    def source(self, file: str) -> str:
        """A picture as a URL that holds it."""
        kind = {".png": "png", ".svg": "svg+xml"}[Path(file).suffix]
        return f"data:image/{kind};base64," + base64.b64encode(self.read(file)).decode()

    @property
    def config(self) -> str:
        """The run's configuration as text."""
        return json.dumps(self.report["run"]["config"], indent=2)


def render(report: Mapping[str, Any], folder: Path) -> str:
    """The page of one run, of its `report.json` and the folder where that lies."""
    return _page([Shown("", report, reader(folder))], report["run"]["title"], None)


def reader(folder: Path) -> Callable[[str], bytes]:
    """The `read` of `Shown` for figures that lie in a folder."""
    return lambda file: (folder / file).read_bytes()


def render_several(runs: Sequence[Shown], overview: Shown) -> str:
    """The page of several runs, section by section beside each other; `overview` is what stands above them."""
    return _page(runs, " and ".join(run.name for run in runs), overview)


def _page(runs: Sequence[Shown], title: str, overview: Shown | None) -> str:
    titles: dict[str, str] = {}
    for run in runs:
        for section in run.report["sections"]:
            # A section that could not be made is called by its name.
            if titles.get(section["name"], section["name"]) == section["name"]:
                titles[section["name"]] = section["title"]
    numbers = {
        run.name or run.report["run"]["title"]: {
            "run": run.report["run"],
            "sections": {
                each["name"]: each["values"] for each in run.report["sections"] if each.get("values")
            },
        }
        for run in runs
    }
    return TEMPLATES.get_template("report.html").render(
        runs=runs, title=title, titles=titles, overview=overview, numbers=numbers
    )
