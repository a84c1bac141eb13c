"""A run on sums from start to end: metrics against their definitions, the report, and what is written by hand."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, load_config

from crate_jax import InputError
from crate_jax.analysis import excess
from crate_jax.train import train
from crate_jax.training.opening import open_run

DATA = "addition:digits=1,leading_zero=true,reversed=true"
SMALL = {key: value for key, value in TINY.items() if key != "model.head_dim"}
SMALL |= {"data.name": DATA, "data.train_split": "train[:64]", "optimizer.lr": 1e-2, "eval_steps": 10}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("addition") / "run"
    config = load_config({**SMALL, "total_steps": 30}, "configs/addition.py")
    return workdir, train(config, workdir, set(SMALL), sections="known_entropy")


def test_metrics_of_the_last_evaluation(trained):
    """Against the logits, in numpy."""
    workdir, values = trained
    run, params, _ = open_run(workdir)
    source = run.data.source("test")
    tokens = np.stack([source[i]["tokens"] for i in range(len(source))]).astype(np.int32)
    logits = np.asarray(run.model.apply(params, jnp.asarray(tokens))[0], np.float64)
    nats = -np.take_along_axis(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), tokens[..., None], -1)
    nats = nats[..., 0]
    floor = 2 * math.log(10) / 7
    assert values["eval/count"] == len(tokens) == 10
    assert values["eval/excess"] == pytest.approx(nats.mean() - floor, abs=1e-5)
    assert values["eval/loss"] == pytest.approx(values["eval/excess"] + floor, abs=1e-5)
    assert values["eval/answer_loss"] == pytest.approx(nats[:, 4:].mean(), rel=1e-4)
    for position in range(7):
        assert values[f"eval/position/{position:02d}"] == pytest.approx(nats[:, position].mean(), rel=1e-4)


def test_an_exact_match_is_what_greedy_decoding_writes(trained):
    workdir, values = trained
    run, params, _ = open_run(workdir)
    source = run.data.source("test")
    tokens = np.stack([source[i]["tokens"] for i in range(len(source))]).astype(np.int32)
    decode = run.model.decoder(params)
    cache, previous = run.model.init_cache(len(tokens)), jnp.zeros(len(tokens), jnp.int32)
    written = []
    for position in range(tokens.shape[1]):
        logits, cache = decode(previous, cache, jnp.int32(position))
        chosen = np.asarray(logits.argmax(-1)) if position >= 4 else tokens[:, position]
        written.append(chosen)
        previous = jnp.asarray(chosen)
    right = (np.stack(written, axis=1) == tokens).all(axis=1)
    assert values["eval/exact_match"] == pytest.approx(right.mean())


def test_the_report_says_what_is_known(trained):
    workdir, values = trained
    section = json.loads((workdir / "report" / "known_entropy.json").read_text())
    assert section["excess"] == pytest.approx(values["eval/excess"], abs=1e-5)
    assert section["floor"] == pytest.approx(2 * math.log(10) / 7)
    assert [position["loss"][-1] for position in section["positions"]] == pytest.approx(
        [values[f"eval/position/{i:02d}"] for i in range(7)]
    )
    assert section["steps"] == [10, 20, 30]
    assert (workdir / "report" / "known_entropy.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_of_the_study_of_sizes(trained, tmp_path):
    workdir, values = trained
    row = excess.summarise(workdir, "one")
    assert row.excess == values["eval/excess"] and row.exact_match == values["eval/exact_match"]
    assert len(row.cells()) == len(excess.HEADERS)
    assert excess.write([row], tmp_path).read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "excess.json").read_text())[0]["name"] == "one"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.vocab_size": 100}, "model.vocab_size: found 100; accepted: 14"),
        ({"data.train_split": "train[5:5]"}, "holds no examples"),
        ({"data.flip": True}, "data.flip: found True; accepted for sums: False"),
        ({"task": "joint", "model.num_classes": 2}, "task: joint needs labels, which sums has not"),
    ],
)
def test_mistakes(tmp_path, changes, message):
    config = load_config({**SMALL, **changes}, "configs/addition.py")
    with pytest.raises(InputError, match=message):
        train(config, tmp_path / "run", set(SMALL) | set(changes))


@pytest.mark.slow
@pytest.mark.nightly
def test_the_default_learns_to_add(tmp_path, optimized):
    values = train(load_config({}, "configs/addition.py"), tmp_path)
    assert values["eval/exact_match"] >= 0.99
    assert 0 <= values["eval/excess"] < 0.01
    jax.clear_caches()
