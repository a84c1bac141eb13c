"""docs/models.md says what the code says."""

import dataclasses
import runpy

from conftest import ROOT

from crate_jax import models


def test_the_table_of_sizes_is_current():
    tables = runpy.run_path(str(ROOT / "docs" / "models_table.py"))
    page = (ROOT / "docs" / "models.md").read_text()
    assert tables["renew"](page, "sizes", tables["sizes"]()) == page


def test_every_switch_is_described():
    page = (ROOT / "docs" / "models.md").read_text()
    for field in dataclasses.fields(models.CRATELayers):
        assert f"`{field.name}`" in page or field.name == "head_dim", field.name
