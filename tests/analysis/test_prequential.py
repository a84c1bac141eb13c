"""What the lines of a run say as a code, against sums by hand; which runs are refused."""

import dataclasses
import json
import math

import numpy as np
import pytest
from conftest import TINY, load_config

from crate_jax import InputError
from crate_jax.analysis import estimates, prequential
from crate_jax.data import sources
from crate_jax.runs import workdir as workdirs
from crate_jax.train import train
from crate_jax.training.opening import open_run

DATA = "addition:digits=1,leading_zero=true,reversed=true"
SMALL = {key: value for key, value in TINY.items() if key != "model.head_dim"}
SMALL |= {
    "data.name": DATA,
    "batch_size": 8,
    "total_steps": 20,
    "log_steps": 2,
    "eval_steps": 10,
    "checkpoint_steps": 20,
}


def written(path, lines, file="configs/addition.py", **changes):
    """A workdir with these lines in it."""
    config = load_config(changes, file)
    info = sources.open_dataset(config.data.name).info(config.data.name)
    info = info.cut(getattr(config.model, "num_positions", 1))
    workdirs.write(path, config, info)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_curve_by_hand(tmp_path):
    """81 pairs, of which 8 are held out, and their mirrors: batches of 20 make three or four in the first pass."""
    info = sources.open_dataset("addition:digits=1").info("")
    assert info.num_examples["train"] // 10 == 6
    lines = [
        {"step": 2, "train/loss": 2.0},
        {"step": 4, "train/loss": 1.5},
        {"step": 5, "eval/loss": 1.25},
        {"step": 6, "train/loss": 1.0},
        {"step": 8, "train/loss": 0.5},  # Of the second pass.
        {"step": 8, "eval/loss": 0.75, "final": True},
    ]
    changes = {"data.name": "addition:digits=1", "model.num_positions": 7, "batch_size": 10}
    curve = prequential.of_run(written(tmp_path / "run", lines, **changes))
    assert curve.steps == [2, 4, 6] and curve.examples == 60
    assert curve.code.nats == 2 * 10 * 7 * (2.0 + 1.5 + 1.0)
    assert curve.code.entropy == 60 * 7 * 0.75
    assert curve.raw_bytes == pytest.approx(60 * 7 * math.log2(14) / 8)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "configs/addition.py",
            {"model.dropout": 0.1},
            r"model.dropout 0.1; accepted for a prequential length: 0",
        ),
        ("configs/addition.py", {"init_from": "elsewhere"}, r"init_from elsewhere"),
        (
            "configs/igpt.py",
            {"data.shift": 1.0},
            r"data.shift 1.0; accepted for a prequential length: images as they are",
        ),
        ("configs/igpt.py", {"task": "bert", "model.causal": False}, r"found task bert"),
        ("configs/text.py", {}, r"overlapping windows.*python -m crate_jax.compress joint"),
        ("configs/addition.py", {"batch_size": 10**6}, r"no part of its first pass \(0 steps\)"),
    ],
)
def test_losses_that_are_no_code_are_refused(tmp_path, file, changes, message):
    lines = [{"step": 2, "train/loss": 2.0, "eval/loss": 1.0}]
    with pytest.raises(InputError, match=message):
        prequential.of_run(written(tmp_path / "run", lines, file, **changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("prequential") / "run"
    train(load_config(SMALL, "configs/addition.py"), workdir, set(SMALL), sections="loss")
    return workdir


@pytest.mark.slow
def test_the_command_says_all_three_lengths(trained, capsys):
    estimates.estimate(["estimate", f"--workdir={trained}"])
    values = json.loads((trained / "report" / "estimate.json").read_text())
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    # A pass over the training pairs is so many whole batches of 8.
    batches = json.loads((trained / "dataset.json").read_text())["num_examples"]["train"] // 8
    logged = [line["train/loss"] for line in lines if "train/loss" in line and line["step"] <= batches]
    assert values["prequential"]["nats"] == pytest.approx(2 * 8 * 7 * sum(logged))
    assert values["prequential"]["end"] == lines[-1]["eval/loss"]
    assert values["prequential"]["floor"] == pytest.approx(2 * math.log(10) / 7)
    assert values["test set"]["nats"] == pytest.approx(10 * 7 * lines[-1]["eval/loss"])
    assert "entropy left" in capsys.readouterr().out


def test_two_parts_of_a_run_by_hand(trained):
    opened = open_run(trained)
    whole, *_ = prequential.two_part(opened, examples=50)
    source = opened.run.data.source("train")
    tokens = np.stack([source[i]["tokens"] for i in range(len(source))]).astype(np.int32)
    logits = np.asarray(opened.run.model.apply(opened.params, tokens)[0], np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats = -np.take_along_axis(logp, tokens[..., None], -1).mean()
    assert whole.bits == 32
    assert whole.parameters == pytest.approx(32 * math.log(2) * opened.run.model.num_params)
    assert whole.data == pytest.approx(nats * 50 * 7, rel=1e-5)


def test_a_run_without_predictions_is_refused(tmp_path):
    config = dataclasses.asdict(load_config({}, "configs/addition.py"))
    assert config["task"] == "autoregressive"
    with pytest.raises(InputError, match="holds no"):
        estimates.estimate(["estimate", f"--workdir={tmp_path}"])
