"""The passes that a layer makes, counted by hand, and the page that shows them."""

import json
import runpy

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "docs" / "passes.py"))


@pytest.mark.parametrize(
    ("family", "forward", "backward"), [("CRATE", 13, 28), ("ViT", 30, 70), ("iGPT", 30, 61)]
)
def test_passes_of_a_layer(script, family, forward, backward):
    assert (script["passes"](family, False), script["passes"](family, True)) == (forward, backward)
    assert sum(script["passes"](family, group=group) for group in script["GROUPS"]) == forward + backward


def test_the_page_shows_the_results_and_all_are_within_the_aim(script):
    values = json.loads(script["RESULTS"].read_text(encoding="utf-8"))["values"]
    page, base = script["PAGE"].read_text(encoding="utf-8"), "CRATE-B, batch 256"
    assert values["steps"].keys() == script["STEPS"].keys()
    assert script["render"](values["steps"]) in page
    assert script["layer"](script["STEPS"][base], values["steps"][base]) in page
    assert all(found["ratio"] < values["aim"] for found in values["steps"].values())
