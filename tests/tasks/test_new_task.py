"""A new task is its own file and one row."""

import json

import jax.numpy as jnp
import pytest
from conftest import TINY, load_config

from crate_jax import InputError
from crate_jax.tasks import TASKS, Task, make_task, uses
from crate_jax.tasks.base import masked_mean, normalised_images
from crate_jax.tasks.tokenizer import ValueMeaning
from crate_jax.train import train


@uses("data.erase")
def brightness(config, pixels):
    """Predict an image's mean brightness with the first class score."""
    inputs = normalised_images(config, pixels)

    def errors(apply, batch, **options):
        images = inputs(batch)
        return jnp.square(apply(images, **options)[0][:, 0] - images.mean(axis=(1, 2, 3)))

    def loss(apply, batch, key):
        return errors(apply, batch, train=True, key=key).mean(), {}

    def evaluate(apply, batch):
        return {"loss": masked_mean(batch["mask"], errors(apply, batch))}

    return Task(inputs, loss, evaluate)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(TASKS, "brightness", brightness)
    return {**TINY, "task": "brightness", "label_smoothing": 0.0, "total_steps": 2, "eval_steps": 2}


def test_it_trains_is_evaluated_and_reported(toy, tmp_path):
    values = train(load_config(toy), tmp_path, sections="loss")
    assert set(values) == {"eval/loss", "eval/count"} and values["eval/count"] == 360
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["final"] is True
    assert (tmp_path / "report" / "index.html").is_file()


def test_its_settings_are_its_own(toy):
    make_task(load_config({**toy, "data.erase": 0.5}), ValueMeaning(16))
    with pytest.raises(
        InputError, match=r"data\.mixup: found 0.5; accepted for task brightness: 0 \(only classify uses it"
    ):
        make_task(load_config({**toy, "data.mixup": 0.5}), ValueMeaning(16))
