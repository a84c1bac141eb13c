"""A new family of models is its own file and one row: the example of docs/extending.md."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import pytest
from conftest import TINY, load_config, slow_but

from crate_jax import models
from crate_jax.train import train
from crate_jax.training import optim

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def mixer(monkeypatch):
    text = DOCS.read_text(encoding="utf-8")
    section = text[text.index("## A model family") :]
    namespace = {"__name__": "crate_jax.models.mixer"}
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], namespace)
    row = models.Family(namespace["MixerConfig"], namespace["Mixer"], None)
    monkeypatch.setitem(models.FAMILIES, "mixer", row)
    return namespace["MixerConfig"]


@pytest.mark.parametrize("scan", slow_but([True, False], True))
def test_it_trains_is_evaluated_and_opens_again(mixer, tmp_path, scan):
    config = load_config({**TINY, "total_steps": 2, "eval_steps": 2})
    model = mixer(dim=16, depth=2, heads=2, image_size=8, patch_size=2, channels=1, num_classes=10, scan=scan)
    config = dataclasses.replace(config, model=model)
    values = train(config, tmp_path, sections="loss,layerwise")
    assert values["eval/count"] == 360
    assert json.loads((tmp_path / "config.json").read_text())["model"]["family"] == "mixer"


def test_its_kernels_are_decayed_and_its_scales_are_not(mixer):
    params = models.create(
        mixer(depth=1, dim=8, heads=1, image_size=8, patch_size=4, num_classes=2)
    ).abstract_params
    decayed = {
        jax.tree_util.keystr(path) for path, on in jax.tree.leaves_with_path(optim.decay_mask(params)) if on
    }
    assert len(decayed) == 4 and all("kernel" in path for path in decayed)
