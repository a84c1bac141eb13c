"""Every configuration takes a real step: shrunk, on mocked data of its own kind, with the trainer's own compiled step."""

import dataclasses
import math

import cv2
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import load_config
from test_configs import ALL

from crate_jax import models
from crate_jax.data import palette
from crate_jax.parallel.sharding import MeshConfig, shard_batch
from crate_jax.runs.config import Duration
from crate_jax.training.program import compile_program
from crate_jax.training.starting import start_run

# Of every model; a field that a model does not have stays away.
SMALL = {
    "dim": 16,
    "remat": "none",
    "depth": 2,
    "heads": 2,
    "head_dim": 8,
    "vocab_size": 512,
}
NUM_CLASSES = 3
# What no gradient reaches: CRATE-MAE's positions and its released but unread projection, and its mask token
# where nothing is hidden.
STILL = {
    "crate_mae": {"position_embedding", "decoder_position_embedding", "decoder_projection"},
    "autoencoder": {"mask_token"},
}


def shrunk(file: str, variant: str):
    """The configuration with a small model and images and two steps; all that it does to the data stays."""
    config = load_config({}, f"configs/{file}.py", variant)
    data, model = config.data, config.model
    fields = {field.name for field in dataclasses.fields(model)}
    sizes = {name: value for name, value in SMALL.items() if name in fields}
    if data.name.startswith("text:"):
        data = dataclasses.replace(data, name="stdlib")
    if data.name.startswith("pixels:"):
        data = dataclasses.replace(data, name="pixels:digits")
    made = data.name.split(":")[0]
    # Data of which the vocabulary follows, and of sums the length too.
    if made in ("digits", "stdlib", "pixels", "addition"):
        sizes.pop("vocab_size", None)
        if made in ("stdlib", "pixels"):
            sizes["num_positions"] = 64
    elif isinstance(model, models.TokenConfig):
        data = dataclasses.replace(data, image_size=8, palette="palette.npy")
        sizes["num_positions"] = 64
    else:
        size = 4 * (model.patch_size if model.patch_size < 16 else 8)
        data = dataclasses.replace(data, image_size=size, eval_resize=data.eval_resize and size + 4)
        sizes |= {"image_size": size, "patch_size": size // 4}
    if data.name.startswith(("folder:", "array_record:")):
        data = dataclasses.replace(data, name="folder:images")
    steps = Duration(2, "steps")
    return dataclasses.replace(
        config,
        model=dataclasses.replace(model, **sizes),
        data=data,
        optimizer=dataclasses.replace(
            config.optimizer, lr=1e-4, start_lr=0.0, weight_decay=0.0, weight_decay_end=None
        ),
        simdino=dataclasses.replace(config.simdino, groups=min(config.simdino.groups, 2)),
        batch_size=4,
        accumulate=1,
        mesh=MeshConfig(),
        total=steps,
        warmup=None,
        log=steps,
        eval=steps,
        checkpoint=steps,
        trace=None,
        init_from=None,
    )


def distinct() -> dict[str, object]:
    """One variant for each shrunk configuration: sizes of one recipe shrink to the same."""
    found: dict[str, object] = {}
    for file, variant in ALL:
        config = shrunk(file, variant)
        if config not in found.values():
            found[f"{file}:{variant}"] = config
    return found


def image(number: int, channels: int = 3) -> bytes:
    pixels = np.random.default_rng(number).integers(256, size=(40, 48, channels), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


class Records(list):
    """What `tfds.data_source` returns for a split."""

    dataset_info = None


def data_source(builder, split=None, decoders=None, **options):
    records = Records(
        {"image": image(i), "label": i % builder.info.features["label"].num_classes} for i in range(8)
    )
    records.dataset_info = builder.info
    return {"train": records, "validation": records}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tfds.core.utils.gcs_utils, "_is_gcs_disabled", True)
    for split in ("train", "val"):
        for i in range(9):
            path = tmp_path / "images" / split / f"class{i % NUM_CLASSES}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image(i))
    palette.save(
        np.random.default_rng(0).uniform(-1, 1, (512, 3)).astype(np.float32), tmp_path / "palette.npy"
    )
    with tfds.testing.mock_data(as_data_source_fn=data_source, data_dir=str(tmp_path)):
        yield


def with_heads(params):
    """The parameters with random numbers in kernels of heads that start at zero, through which no gradient would pass."""

    def one(path, leaf):
        if path[0].key.endswith("head") and path[-1].key == "kernel" and not leaf.any():
            leaf = jax.device_put(0.1 * jax.random.normal(jax.random.key(0), leaf.shape), leaf.sharding)
        return leaf

    return jax.tree_util.tree_map_with_path(one, params)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), [pytest.param(*item, id=item[0]) for item in distinct().items()])
def test_takes_a_step(name, config, data, tmp_path):
    run = start_run(config, tmp_path)
    with jax.set_mesh(run.mesh):
        batches = run.data.train_batches()
        program = compile_program(run, batches.example())
        before = program.initial_state(run)
        before = dataclasses.replace(before, params=with_heads(before.params))
        start = jax.tree.map(np.asarray, before.params)
        after, report = program.train_step(before, shard_batch(batches.batch(0), run.mesh))
    assert math.isfinite(report["sums"]["loss"]) and not report["halted"]
    assert report["sums"]["grad_norm"] > 0
    moved = jax.tree.map(lambda old, new: bool((old != new).any()), start, after.params)
    # Without weight decay only a gradient moves a parameter: of every part of the model, and of most of it.
    still = {part for part, leaves in moved.items() if not any(jax.tree.leaves(leaves))}
    assert still == STILL.get(config.model.family, set()) | STILL.get(config.task, set()), name
    assert sum(jax.tree.leaves(moved)) > 0.5 * len(jax.tree.leaves(moved))
