"""Every configuration builds; the default one learns; small ones of each kind take real steps."""

import json
import re

import jax
import pytest
from conftest import ROOT, TINY, load_config

from crate_jax import models
from crate_jax.train import train
from crate_jax.training.config import from_config_dict, to_config_dict

CONFIGS = {
    "base": ["digits"],
    "crate": [
        "cifar10",
        *("tiny", "small", "base", "large"),
        *("released_tiny", "released_small", "released_base", "released_large"),
    ],
    "finetune": [
        f"{data}_{size}"
        for data in ("cifar10", "cifar100", "flowers", "pets")
        for size in ("tiny", "small", "base", "large")
    ],
    "igpt": [
        "digits",
        "crate",
        "bert",
        "crate_bert",
        "cifar10",
        "cifar10_crate",
        "cifar10_finetune",
        "imagenet32_s",
        "imagenet32_m",
        "imagenet32_l",
        "imagenet32_crate",
        "imagenet48_l",
        "imagenet64_xl",
    ],
    "mae": ["digits", "autoencoder", "cifar10", "tiny", "small", "base", "large"],
    "simdino": ["digits", "vit", "imagenet", "imagenet_crate"],
    "text": ["gpt", "bert", "transformer_gpt", "transformer_bert", "openwebtext", "openwebtext_transformer"],
}
ALL = [(file, variant) for file, variants in CONFIGS.items() for variant in variants]


def test_the_list_is_complete():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == set(CONFIGS)
    for file, variants in CONFIGS.items():
        text = (ROOT / "configs" / f"{file}.py").read_text()
        assert f"configs/{file}.py" in text.split('"""')[1], "the docstring must say how to run it"
        for variant in variants:
            assert re.search(rf"\b{variant}\b", text)


@pytest.mark.parametrize(("file", "variant"), ALL)
def test_builds_at_full_width(file, variant):
    config = load_config({}, f"configs/{file}.py", variant)
    assert from_config_dict(to_config_dict(config)) == config
    assert models.create(config.model).num_params > 0


def test_a_run_leaves_what_it_promises(tmp_path):
    values = train(
        load_config({**TINY, "ema_decay": 0.9, "accumulate": 2, "optimizer.name": "adamw"}), tmp_path
    )
    assert values["eval/count"] == 360
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["final"] is True
    assert lines[-1]["eval/accuracy"] == values["eval/accuracy"]
    logged = {key for line in lines for key in line}
    assert {"step", "seconds", "train/loss", "train/examples_per_second", "eval/loss"} <= logged
    assert {
        f"layer/{layer:02d}/{name}" for layer in range(2) for name in ("coding_rate", "nonzero_fraction")
    } <= logged
    traced = [line["step"] for line in lines if "layer/00/coding_rate" in line]
    assert traced == [15, 30]
    assert (tmp_path / "report" / "layerwise.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "report" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())[-1] == 30
    # The latest and the best are kept, nothing else.
    assert len(list((tmp_path / "checkpoints").iterdir())) <= 2
    assert json.loads((tmp_path / "config.json").read_text())["ema_decay"] == 0.9


def test_the_step_compiles_once(tmp_path, tiny_config):
    from crate_jax.training import steps

    traced = []
    original = steps.loss_and_grad

    def counting(*args):
        traced.append(1)
        return original(*args)

    steps.loss_and_grad = counting
    try:
        train(tiny_config, tmp_path)
    finally:
        steps.loss_and_grad = original
    assert len(traced) == 1


@pytest.mark.slow
def test_the_default_configuration_reaches_its_accuracy(tmp_path):
    values = train(load_config({}), tmp_path)
    assert values["eval/accuracy"] >= 0.975
    layers = json.loads((tmp_path / "report" / "layerwise.json").read_text())
    # Training compresses: the tokens that leave the last MSSA take fewer nats than before training.
    last = {when: measured["coding_rate"]["mean"][-1] for when, measured in layers.items()}
    assert last["trained"] < last["initial"]
    jax.clear_caches()
