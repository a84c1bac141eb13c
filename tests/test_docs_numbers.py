"""The numbers on the pages are those of docs/results, and the check finds one that is not."""

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import check_numbers

RESULT = {key: None for key in check_numbers.KEYS}


def test_every_number_on_every_page_has_its_result():
    wrong = [line for page in check_numbers.pages() for line in check_numbers.check(page)]
    assert not wrong, "\n".join(wrong)


def test_every_result_says_where_it_comes_from_and_stands_on_a_page():
    assert not check_numbers.check_results()


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("<!-- measured: one -->\n98.9 % of 360, in 1,437 s.\n", []),
        ("<!-- measured: one -->\n98.8 %\n", ["page.md:2: '98.8' is not in one"]),
        (
            "<!-- measured: one -->\n| a | b |\n|---|---|\n| 361 | −0.5 |\n",
            ["page.md:4: '361' is not in one"],
        ),
        ("<!-- measured: one -->\n## Next\nIt took 5 s.\n", ["page.md:3: '5 s' under no comment"]),
        ("<!-- measured: nothing -->\nWait 5 s.\n", []),
        ("Run `sleep 5 s` and see https://x.org/5%20s or [this](5 s).\n", []),
        ("<!-- measured: two -->\n1\n", ["page.md:2: no file results/two.json"]),
        ("<!-- table: begin (x.py) -->\n| 5 s |\n<!-- table: end -->\n", []),
        ("As in arXiv 2306.01129, 3 layers.\n", []),
    ],
)
def test_what_is_found(text, wrong, tmp_path, monkeypatch):
    monkeypatch.setattr(check_numbers, "RESULTS", tmp_path)
    values = {"accuracy": 98.888, "count": [360, 1437], "change": {"of rate": -0.52}}
    (tmp_path / "one.json").write_text(json.dumps({**RESULT, "values": values}))
    page = tmp_path / "page.md"
    page.write_text(text)
    assert check_numbers.check(page) == wrong
