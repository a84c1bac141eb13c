"""Docstrings as the site shows them: examples (`>>> …`) are blocks of code, objectives begin with their equation."""

import re
import tomllib
from pathlib import Path

from griffe import Extension
from latex2mathml.converter import convert

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n(?! *$).*)*", re.MULTILINE)
EQUATIONS = tomllib.loads((Path(__file__).parents[1] / "equations.toml").read_text(encoding="utf-8"))


def fenced(match: re.Match) -> str:
    """An example between fences."""
    indent = match.group(1)
    return f"{indent}```pycon\n{match.group()}\n{indent}```"


class Docstrings(Extension):
    """Changes every docstring that is read."""

    def on_instance(self, *, obj, **options) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring is None:
            return
        text = EXAMPLE.sub(fenced, obj.docstring.value)
        if obj.is_function and obj.path.startswith("crate_jax.objectives.") and obj.name in EQUATIONS:
            parts = [convert(part.strip(), display="block") for part in EQUATIONS[obj.name].split(r"\quad")]
            text = f'<div class="equation">{"".join(parts)}</div>\n\n{text}'
        obj.docstring.value = text
