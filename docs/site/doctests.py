"""Examples in docstrings (`>>> …`) become blocks of code."""

import re

from griffe import Extension

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n(?! *$).*)*", re.MULTILINE)


def fenced(match: re.Match) -> str:
    indent = match.group(1)
    return f"{indent}```pycon\n{match.group()}\n{indent}```"


class Doctests(Extension):
    """Puts fences around the examples of every docstring."""

    def on_instance(self, *, obj, **options) -> None:
        if obj.docstring and ">>> " in obj.docstring.value:
            obj.docstring.value = EXAMPLE.sub(fenced, obj.docstring.value)
