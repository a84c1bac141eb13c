"""docs/recipes.md: our column is what the configurations say, and nothing of a recipe is left out."""

import re
import runpy
import tomllib

import pytest
from conftest import ROOT

docs = runpy.run_path(str(ROOT / "docs" / "recipes_table.py"))
RECIPES = tomllib.loads(docs["SOURCES"].read_text(encoding="utf-8"))["recipe"]
titles = [recipe["title"] for recipe in RECIPES]


def test_the_page_is_what_the_configurations_say():
    page = docs["PAGE"].read_text(encoding="utf-8")
    assert docs["renew"](page) == page, "run docs/recipes_table.py"


@pytest.mark.parametrize("recipe", RECIPES, ids=titles)
def test_every_setting_of_a_recipe_is_in_its_table(recipe):
    listed = {row[0] for row in recipe["rows"]}
    for name in recipe["configs"]:
        left_out = docs["chosen"](docs["load"](name)).keys() - listed
        assert not left_out, f"{name}: not in docs/recipes_sources.toml"


@pytest.mark.parametrize("recipe", RECIPES, ids=titles)
def test_the_variants_of_a_table_differ_in_the_model_alone(recipe):
    """Where the table does not say so: the length of fine-tuning, the split, and where a run starts."""
    first, *others = (docs["chosen"](docs["load"](name)) for name in recipe["configs"])
    for other in others:
        assert {key for key in first | other if first.get(key) != other.get(key)} <= {"total"}


@pytest.mark.parametrize("recipe", RECIPES, ids=titles)
def test_a_file_with_differences_lists_them(recipe):
    if any(differ for *_, differ, _ in docs["rows"](recipe)):
        file = recipe["configs"][0].partition(":")[0]
        docstring = (ROOT / "configs" / f"{file}.py").read_text(encoding="utf-8").split('"""')[1]
        assert re.search("Differences[.:]", docstring)


def test_values_as_they_are_written():
    text = docs["text"]
    written = [
        text(found) for found in (2.4e-4, 1.0, 0.1, 4096, (0.08, 1.0), (), None, True, 1e-3, 0.0, 1e-6)
    ]
    assert written == ["2.4e-4", "1", "0.1", "4096", "(0.08, 1)", "none", "none", "yes", "1e-3", "0", "1e-6"]
