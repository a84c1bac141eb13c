"""What `--help` prints: the command's docstring, which ends with its examples, its flags, and a configuration's keys."""

import inspect
import shutil
import sys
import textwrap
import typing
from collections.abc import Iterable
from typing import Any

from crate_jax.settings import REQUIRED, Setting, accepted, plain_type, settings_of

# Keys and values are short; descriptions begin here.
INDENT = 34


def page(kind: type, keys: Iterable[tuple[str, Any, Any, Setting]] | None, title: str) -> str:
    """The help of a command.

    Args:
      kind: the dataclass of its flags, from the command's own file.
      keys: (key, value, type, setting) of a configuration; None for a command that has none.
      title: what comes before the keys.
    """
    parts = [documentation(kind), "Flags, written --name=VALUE or --name VALUE:", *_flags(kind)]
    if keys is not None:
        parts += ["", title]
        parts += [_entry(key, description(one, hint, value, "here")) for key, value, hint, one in keys]
    return "\n".join(parts)


def documentation(kind: type) -> str:
    """The docstring of the file that defines a command's flags."""
    return f"{(sys.modules[kind.__module__].__doc__ or '').strip()}\n"


def examples(kind: type) -> list[str]:
    """The command lines in the docstring."""
    lines = (line.strip() for line in documentation(kind).splitlines())
    return [line for line in lines if line.startswith("python -m crate_jax")]


def description(one: Setting, hint: Any, value: Any, when: str) -> str:
    """A setting's sentence, with its value, `when` saying which one that is, and what it accepts."""
    notes = [] if value in (None, "", ()) else [f"{when}: {value}"]
    if one.choices or plain_type(hint) is tuple:
        notes.append(f"accepted: {accepted(hint, one)}")
    elif one.bounds:
        notes.append(one.bounds.removeprefix("of "))
    return f"{one.description} ({'; '.join(notes)})" if notes else one.description


def _flags(kind: type) -> list[str]:
    hints, known = typing.get_type_hints(kind), settings_of(kind)
    rows, own = [], inspect.get_annotations(kind)
    defaults = {name: kind.__dataclass_fields__[name].default for name in known}
    # What must be given, then what is the command's own, then what all such commands have.
    for name in sorted(known, key=lambda name: 0 if defaults[name] is REQUIRED else 1 if name in own else 2):
        one, hint, default = known[name], hints[name], defaults[name]
        required = default is REQUIRED
        named = f"--{name}, --no{name}" if plain_type(hint) is bool else f"--{name}={_place(hint, one)}"
        text = description(one, hint, None if required else default, "default")
        rows.append(_entry(named, f"{text} Required." if required else text))
    rows.append(_entry("--help, -h", "Print this page."))
    return rows


def _place(hint: Any, one: Setting) -> str:
    if one.choices:
        return "WORD"
    return {int: "N", float: "X", tuple: "A,B"}.get(plain_type(hint), "TEXT")


def _entry(name: str, text: str) -> str:
    width = min(shutil.get_terminal_size((110, 24)).columns, 120)
    head = f"  {name}"
    first = head.ljust(INDENT) if len(head) < INDENT - 1 else f"{head}\n{' ' * INDENT}"
    body = textwrap.fill(
        text, max(width, INDENT + 40), initial_indent=" " * INDENT, subsequent_indent=" " * INDENT
    )
    return first + body[INDENT:]
