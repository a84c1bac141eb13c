"""The page's table is up to date; the notebook runs."""

import importlib.util
import pathlib

import nbclient
import nbformat
import pytest

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_table_is_up_to_date():
    spec = importlib.util.spec_from_file_location("objectives_table", DOCS / "objectives_table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    text = table.PAGE.read_text()
    assert table.page(text) == text, "run: python docs/objectives_table.py"


@pytest.mark.slow
def test_notebook_runs():
    notebook = nbformat.read(DOCS / "objectives.ipynb", as_version=4)
    resources = {"metadata": {"path": str(DOCS.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
