"""Values at the edge of what the configuration accepts train two steps."""

import math

import pytest
from conftest import TINY, load_config, slow_but

from crate_jax.settings import LARGEST_SEED
from crate_jax.training.loop import train
from crate_jax.training.starting import start_run

# The smallest run: all that is not said below.
SMALLEST = {
    **TINY,
    "model.dim": 8,
    "model.depth": 1,
    "model.heads": 1,
    "batch_size": 4,
    "total_steps": 2,
    "eval_steps": 0,
    "trace_steps": 0,
    "checkpoint_steps": 0,
    "data.labels_per_class": 1,
    "data.test_split": "test[:4]",
}
EDGES = [
    {"seed": LARGEST_SEED, "total_steps": 1},
    {"batch_size": 1, "label_smoothing": 1.0},
    {"accumulate": 4, "ema_decay": 1 - 1e-12},
    {"optimizer.lr": 0.0, "optimizer.weight_decay": 0.0, "optimizer.b1": 0.0},
    {"optimizer.clip_norm": 1e-30, "warmup_steps": 0},
    {"data.mixup": 1e4, "data.cutmix": 1e-4},
    {"data.erase": 1.0, "data.shift": 1e3},
    {"data.image_size": 1, "model.patch_size": 1, "model.image_size": 1},
    {"model.depth": 1, "model.head_dim": 1, "model.eps_sq": 1e-6},
    {"data.mean": (0.0,), "data.std": (1e-3,), "model.eps_sq": 1e6},
    {"regularizer.sparse_rate_reduction": 1e-30, "regularizer.eps_sq": 1e6},
    {"log_steps": 10**6, "data.threads": 64, "data.max_megapixels": 1e-4},
]


@pytest.mark.parametrize("change", slow_but(EDGES, *EDGES[:3]), ids=lambda change: next(iter(change)))
def test_two_steps(change, tmp_path):
    result = train(start_run(load_config({**SMALLEST, **change}), tmp_path, set(change)))
    assert int(result.state.step) == {**SMALLEST, **change}["total_steps"]
    assert math.isfinite(result.values["eval/loss"])
