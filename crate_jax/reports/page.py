"""The report as one HTML file that needs no network and no other file."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("crate_jax.reports", "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def render(report: Mapping[str, Any], folder: Path) -> str:
    """The page.

    Args:
      report: what stands in `report.json`: "run" and "sections".
      folder: where the figures lie that the sections name; they are put into the page.
    """

    def source(file: str) -> str:
        """A picture as a URL that holds it."""
        kind = {".png": "png", ".svg": "svg+xml"}[Path(file).suffix]
        return f"data:image/{kind};base64," + base64.b64encode((folder / file).read_bytes()).decode()

    config = json.dumps(report["run"]["config"], indent=2)
    return TEMPLATES.get_template("report.html").render(**report, config=config, source=source)
