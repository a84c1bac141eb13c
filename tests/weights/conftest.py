"""Released checkpoints that tests share: those of the fixtures, and each family made anew at any size."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from crate_jax import models, weights

FIXTURES = Path(__file__).parents[1] / "fixtures"
IMAGES = {"image_size": 8, "patch_size": 4, "channels": 3}
BLOCKS = {"dim": 16, "depth": 2, "heads": 2}
# A small model of each family; its heads are those of no published size.
SMALL = {
    "crate": models.CRATEConfig(**IMAGES, **BLOCKS, num_classes=3, head_dim=8),
    "crate_alpha": models.CRATEAlphaConfig(**IMAGES, **BLOCKS, num_classes=3),
    "crate_alpha_npz": models.CRATEAlphaConfig(**IMAGES, **BLOCKS, num_classes=3),
    "crate_mae": models.CRATEMAEConfig(**IMAGES, **BLOCKS, head_dim=8),
    "igpt_hf": models.IGPTConfig(**BLOCKS, vocab_size=8, num_positions=16, use_bias=True),
    "igpt_openai": models.IGPTConfig(**BLOCKS, vocab_size=8, num_positions=16),
    "igpt_openai_bert": models.IGPTConfig(**BLOCKS, vocab_size=8, num_positions=16, causal=False),
    "simdino": models.ViTConfig(**IMAGES, **BLOCKS, num_classes=6, head_hidden=12),
    "vit_timm": models.ViTConfig(**IMAGES, **BLOCKS, num_classes=3),
}
PUBLISHED = {
    "crate": models.crate("base"),
    "crate_alpha": models.crate_alpha("base"),
    "crate_alpha_npz": models.crate_alpha("base"),
    "crate_mae": models.crate_mae("base"),
    "igpt_hf": models.igpt("s", use_bias=True),
    "igpt_openai": models.igpt("s"),
    "igpt_openai_bert": models.igpt("s", causal=False),
    "simdino": models.vit("base", num_classes=256, head_hidden=2048),
    "vit_timm": models.vit("base"),
}


def random_params(config, seed=0):
    """Parameters of a model, every entry random, which initial values are not."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32), models.create(config).abstract_params
    )


def released(family, config=None):
    """Random arrays under the family's released names."""
    return weights.export(random_params(config or SMALL[family]), family)


def fixture(name):
    """What a fixture holds: the released arrays, and the rest."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        values = {name: file[name] for name in file.files}
    arrays = {name.removeprefix("param/"): v for name, v in values.items() if name.startswith("param/")}
    return arrays, values


def same_model(found, config):
    """Whether two configurations describe the same parameters and what is computed from them."""
    return (
        dataclasses.replace(found, mssa_std=None) == dataclasses.replace(config, mssa_std=None)
        if hasattr(config, "mssa_std")
        else found == config
    )


@pytest.fixture(scope="module")
def crate_fixture():
    return fixture("crate_official")[0]
