"""The theory switches of CRATE's blocks, against the equations in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crate_jax import InputError, models, objectives
from crate_jax.models.crate import UPDATES, CRATEBlock
from crate_jax.models.operators import FORMS, ISTA, MSSA, OUTPUTS
from crate_jax.runs.optimizers import OPTIMIZERS
from crate_jax.training.optim import make_optimizer

DIM, HEADS, HEAD_DIM, TOKENS, EPS_SQ = 8, 2, 4, 5, 0.3
BETA, ALPHA = HEAD_DIM / (TOKENS * EPS_SQ), DIM / (TOKENS * EPS_SQ)
CONFIG = models.CRATEConfig(
    image_size=8, patch_size=4, channels=1, num_classes=3, dim=DIM, depth=2, heads=HEADS, head_dim=HEAD_DIM
)
TOKEN_OPTIONS = {"vocab_size": 5, "num_positions": 6, "dim": DIM, "depth": 2, "heads": HEADS}
Z = np.asarray(jax.random.normal(jax.random.key(1), (3, TOKENS, DIM)), np.float64)


def operator(kind, **switches):
    config = models.resolve(dataclasses.replace(CONFIG, eps_sq=EPS_SQ, **switches))
    return kind(config, config, rngs=nnx.Rngs(params=0))


def softmax(scores):
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def mssa_oracle(z, bases, output, *, linear=False):
    w = np.einsum("bnd,kdp->bknp", z, bases)
    scores = np.einsum("bkip,bkjp->bkij", w, w) / np.sqrt(bases.shape[-1])
    attention = scores / z.shape[1] if linear else softmax(scores)
    return np.einsum("bkij,bkjp,kpd->bid", attention, w, output)


def close(actual, expected):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("attention", ["softmax", "linear"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_mssa(output, attention):
    layer = operator(MSSA, output=output, attention=attention)
    bases = np.asarray(layer.bases[...], np.float64)
    flat = bases.transpose(1, 0, 2).reshape(DIM, DIM)  # [U_1 … U_K]
    matrix = {
        "free": lambda: layer.output[...],
        "tied": lambda: BETA * flat.T.reshape(HEADS, HEAD_DIM, DIM),
        "transposed": lambda: flat.reshape(HEADS, HEAD_DIM, DIM),
        "fixed": lambda: layer.fixed_output[...],
        "identity": lambda: np.eye(DIM).reshape(HEADS, HEAD_DIM, DIM),
    }[output]()
    expected = mssa_oracle(Z, bases, np.asarray(matrix, np.float64), linear=attention == "linear")
    if output == "free":
        expected = expected + np.asarray(layer.bias[...], np.float64)
    close(layer(jnp.asarray(Z, jnp.float32)), expected)


def test_tied_is_the_gradient_step_of_the_derivation():
    """Eq. 11: with a tied output the block's first half is `objectives.mssa_step`, but for the scale of the scores."""
    z, bases = jnp.asarray(Z, jnp.float32), jax.random.normal(jax.random.key(3), (HEADS, DIM, HEAD_DIM))
    step = objectives.mssa_step(z, bases, step_size=0.4, eps_sq=EPS_SQ)
    update = BETA * objectives.mssa(z, bases, scale=1.0)
    close(UPDATES["derived"](z, update, 0.4, BETA), np.asarray(step))


@pytest.mark.parametrize("learned", [False, True])
def test_ista(learned):
    eta, lam = 0.2, 0.3
    layers = {
        form: operator(ISTA, ista=form, ista_steps=3, step_size=eta, penalty=lam, learn_steps=learned)
        for form in FORMS
    }
    d = {form: np.asarray(layer.dictionary[...], np.float64) for form, layer in layers.items()}
    out = {form: layer(jnp.asarray(Z, jnp.float32)) for form, layer in layers.items()}
    released = d["released"]
    close(out["released"], np.maximum(Z + eta * (Z @ released - Z @ released.T @ released) - eta * lam, 0))
    np.testing.assert_allclose(d["orthogonal"] @ d["orthogonal"].T, np.eye(DIM), atol=1e-6)
    moved = (1 + 4 / (9 * (1 + ALPHA))) * Z @ d["orthogonal"]
    close(out["orthogonal"], np.maximum(moved - 4 * lam / (9 * ALPHA), 0))
    codes = np.zeros_like(Z)
    for _ in range(3):
        codes = np.maximum(codes + eta * (Z - codes @ d["unrolled"].T) @ d["unrolled"] - eta * lam, 0)
    close(out["unrolled"], codes)


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        ("skip", lambda z, u: z + 0.4 * u),
        ("negative", lambda z, u: z - 0.4 * u),
        ("derived", lambda z, u: (1 - 0.4 * BETA) * z + 0.4 * BETA * u),
    ],
)
def test_update(update, expected):
    switches = {"update": update, "compression_step": 0.4, "eps_sq": EPS_SQ}
    config = models.resolve(dataclasses.replace(CONFIG, **switches))
    block = CRATEBlock(config, config, rngs=nnx.Rngs(params=0))
    assert config.sequence_length == TOKENS
    _, found = block(jnp.asarray(Z, jnp.float32), return_intermediates=True)
    close(found["mssa_out"], expected(Z, np.asarray(found["mssa_update"], np.float64)))


def test_learned_steps_start_as_the_fixed_ones_and_have_gradients():
    fixed, learned = (models.create(dataclasses.replace(CONFIG, learn_steps=x)) for x in (False, True))
    params = jax.jit(learned.init)(jax.random.key(0))
    blocks = params["blocks"]["blocks"]
    steps = {
        "compression_step": blocks.pop("compression_step"),
        **{name: blocks["ista"].pop(name) for name in ("step_size", "penalty")},
    }
    assert {name: np.unique(value).tolist() for name, value in steps.items()} == {
        "compression_step": [1.0],
        "step_size": [np.float32(0.1)],
        "penalty": [np.float32(0.1)],
    }
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))

    def logits(steps):
        merged = {**blocks, "compression_step": steps["compression_step"]}
        merged["ista"] = {**blocks["ista"], "step_size": steps["step_size"], "penalty": steps["penalty"]}
        return learned.apply({**params, "blocks": {"blocks": merged}}, images)[0]

    close(jax.jit(logits)(steps), np.asarray(jax.jit(fixed.apply)(params, images)[0]))
    grads = jax.jit(jax.grad(lambda steps: logits(steps).var()))(steps)
    assert all(bool(jnp.all(value != 0)) for value in grads.values())


@pytest.mark.parametrize("name", ["lion", "adamw", "sgd"])
def test_a_fixed_output_stays_as_it_is(name):
    params = {"mssa": {"fixed_output": jnp.ones(3), "bases": jnp.ones(3)}}
    tx = make_optimizer(OPTIMIZERS[name](weight_decay=0.5), lambda step: 0.1)
    grads = {"mssa": {"fixed_output": jnp.zeros(3), "bases": jnp.ones(3)}}
    updates, _ = tx.update(grads, tx.init(params), params)
    assert bool(jnp.all(updates["mssa"]["fixed_output"] == 0))
    assert bool(jnp.all(updates["mssa"]["bases"] != 0))
    layer = operator(MSSA, output="fixed")
    graphdef, state = nnx.split(layer)
    value = lambda state: nnx.merge(graphdef, state)(jnp.asarray(Z, jnp.float32)).var()  # noqa: E731
    assert bool(jnp.all(jax.grad(value)(state)["fixed_output"][...] == 0))


@pytest.mark.parametrize(
    "change",
    [{"output": "tied", "update": "derived", "compression_step": 0.5}, {"attention": "linear"}],
)
def test_decoding_gives_the_logits_of_the_whole_sequence(change):
    config = models.CRATEGPTConfig(**TOKEN_OPTIONS, head_dim=HEAD_DIM, scan=False, **change)
    model = models.create(config)
    params = model.init(jax.random.key(0))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(2), params["head"]["kernel"].shape)
    tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 5)
    expected, _ = model.apply(params, tokens)
    cache, previous = model.init_cache(2), jnp.zeros(2, jnp.int32)
    decode = jax.jit(model.decode)
    for position in range(6):
        logits, cache = decode(params, previous, cache, jnp.int32(position))
        np.testing.assert_allclose(logits, expected[:, position], rtol=1e-4, atol=1e-5)
        previous = tokens[:, position]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"output": "bound"},
            "model.output: found 'bound'; accepted: free, tied, transposed, fixed, identity",
        ),
        ({"attention": "hard"}, "model.attention: found 'hard'; accepted: softmax, linear"),
        ({"update": "add"}, "model.update: found 'add'; accepted: skip, negative, derived"),
        ({"ista": "fista"}, "model.ista: found 'fista'; accepted: released, orthogonal, unrolled"),
        (
            {"output": "identity", "head_dim": 3},
            r"needs model.heads × model.head_dim = model.dim; found 2 × 3 and 8",
        ),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(InputError, match=message):
        models.create(dataclasses.replace(CONFIG, **change))
