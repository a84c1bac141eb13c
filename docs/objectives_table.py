"""Renew the table of public functions in docs/objectives.md from their docstrings: run this file."""

import inspect
import pathlib
import re

from crate_jax import objectives

PAGE = pathlib.Path(__file__).with_name("objectives.md")
BEGIN, END = "<!-- table: begin (docs/objectives_table.py) -->", "<!-- table: end -->"


def row(name):
    document = inspect.getdoc(getattr(objectives, name))
    summary = " ".join(document.split("\n\n")[0].split())
    title, _, equation = summary.partition(": ")
    source = re.search(r"Source: (.*?)(?:\n\n|$)", document, re.DOTALL)
    cells = (f"`{name}`", title.rstrip("."), equation, " ".join(source[1].split()) if source else "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page(text):
    """The page's text with the table between its two marks renewed."""
    head, rest = text.split(BEGIN)
    table = ["| name | what | equation | source |", "|---|---|---|---|", *map(row, objectives.__all__)]
    return head + "\n".join([BEGIN, *table, END]) + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
