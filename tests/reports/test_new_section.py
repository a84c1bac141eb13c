"""The section that docs/extending.md shows: its file and one row."""

import json
import re
from types import SimpleNamespace

import jax
from conftest import ROOT

from crate_jax import models
from crate_jax.parallel.sharding import MeshConfig, make_mesh
from crate_jax.reports import SECTIONS, Section, writing
from crate_jax.runs.config import Config
from crate_jax.training.opening import Opened


def test_the_section_of_the_documentation(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "How large" in block]
    namespace: dict = {}
    exec(code, namespace)
    monkeypatch.setattr(writing, "SECTIONS", {"size": Section(namespace["make"])})
    info = SimpleNamespace(name="digits", num_examples={"train": 10, "test": 5})
    config = Config(model=models.crate("tiny"))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model = SimpleNamespace(num_params=1234)
    run = SimpleNamespace(config=config, workdir=tmp_path, info=info, mesh=mesh, model=model)
    assert writing.write_report(Opened(run, {}, 0)).failed == {}
    assert json.loads((tmp_path / "report" / "size.json").read_text()) == {"parameters": 1234}
    assert "1,234" in (tmp_path / "report" / "index.html").read_text()


def test_names_of_sections_are_names_of_files():
    assert all(re.fullmatch("[a-z_]+", name) for name in SECTIONS)
