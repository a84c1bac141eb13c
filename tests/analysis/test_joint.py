"""Prequential codes of models that learn while they code: against a loop by hand, and what one dataset says of another."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_config

from crate_jax import InputError, models
from crate_jax.analysis import estimates, joint

SMALL = {
    "model.dim": 16,
    "model.depth": 1,
    "model.heads": 2,
    "model.head_dim": 8,
    "model.num_positions": 8,
    "batch_size": 4,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    words = [b"white ", b"boxes ", b"compress ", b"what ", b"they ", b"see "]
    texts = {"one": b"".join(words[i] for i in rng.integers(0, 6, 400))}
    texts["other"] = b"".join(words[i] for i in rng.integers(0, 6, 400))
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    return {name: f"text:{folder / name}" for name in texts}


def test_the_code_of_a_tiny_model_by_hand(places):
    """Plain gradient descent, written out: each batch is coded, then the parameters move."""
    config = load_config({**SMALL, "optimizer.name": "sgd", "optimizer.lr": 0.5}, "configs/text.py")
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, weight_decay=0.0, clip_norm=None)
    )
    info, tokens = joint.sequences(places["one"], 8, 12)
    found = joint.coder(config, info)(tokens, 3)
    model = models.create(config.model)
    params = model.init(jax.random.key(3))

    @jax.jit
    def nats(params, batch):
        logits = model.apply(params, batch)[0]
        logp = logits - jnp.log(jnp.sum(jnp.exp(logits), axis=-1, keepdims=True))
        return -jnp.sum(jnp.take_along_axis(logp, batch[..., None], axis=-1))

    by_hand = []
    for step, batch in enumerate(tokens.astype(np.int32).reshape(3, 4, 8)):
        value, grads = jax.value_and_grad(nats)(params, batch)
        by_hand.append(float(value))
        rate = 0.5 * step / joint.WARMUP
        params = jax.tree.map(lambda p, g: p - rate * g / 32, params, grads)  # noqa: B023
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)
    assert found[0] == pytest.approx(32 * math.log(256), rel=1e-5)


def test_what_was_learned_of_one_helps_with_the_other(places):
    config = load_config({**SMALL, "optimizer.lr": 1e-2}, "configs/text.py")
    (one,) = joint.measure(config, places["one"], places["other"], [0], 10**6)
    assert one.second_given_first < one.second and one.saved_in_turn == one.second - one.second_given_first
    assert one.both < one.first + one.second
    assert one.both_less_first == pytest.approx(one.second - one.saved_together)


def test_sequences_share_no_token(places):
    text = open(places["one"].removeprefix("text:"), "rb").read()
    info, tokens = joint.sequences(places["one"], 8, 10**6)
    trained = text[: len(text) - len(text) // 10]
    assert tokens.tobytes() == trained[: len(trained) // 8 * 8]
    assert info.tokens.length == 8


def test_the_command_writes_what_it_prints(places, tmp_path, capsys):
    config = ["--config=configs/text.py", *(f"--config.{key}={value}" for key, value in SMALL.items())]
    output = tmp_path / "joint.json"
    flags = [
        f"--first={places['one']}",
        f"--second={places['other']}",
        "--seeds=1",
        "--examples=8",
        f"--output={output}",
    ]
    estimates.joint(["joint", *config, *flags])
    values = json.loads(output.read_text())
    assert values["mean"]["first"] == values["seeds"][0]["first"] > 0
    assert f"{values['mean']['both']:,.0f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("digits", "stdlib", "digits: found images; accepted: text, or other tokens"),
        (
            "stdlib",
            "addition:digits=1",
            "--second: found sums of addition:digits=1; accepted: the tokens of stdlib",
        ),
    ],
)
def test_mistakes(first, second, message):
    with pytest.raises(InputError, match=message):
        joint.measure(load_config(SMALL, "configs/text.py"), first, second, [0], 8)
