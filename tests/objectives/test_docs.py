"""The page's table is up to date."""

import importlib.util
import pathlib

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_table_is_up_to_date():
    spec = importlib.util.spec_from_file_location("objectives_table", DOCS / "objectives_table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    text = table.PAGE.read_text()
    assert table.page(text) == text, "run: python docs/objectives_table.py"
