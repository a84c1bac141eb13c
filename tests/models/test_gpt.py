"""iGPT and CRATE-GPT: sizes, parity with Hugging Face's port, causality, the cache."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crate_jax import InputError, models, weights
from crate_jax.models import decoding, layers

OFFICIAL = Path(__file__).parents[1] / "fixtures" / "imagegpt_hf.npz"
SMALL = {"vocab_size": 11, "num_positions": 16, "dim": 24, "depth": 3, "heads": 4}
CAUSAL = [models.IGPTConfig(**SMALL), models.CRATEGPTConfig(**SMALL, head_dim=6)]


@pytest.fixture(params=CAUSAL, ids=lambda config: config.family)
def case(request):
    """A model with no parameter at its initial value, and some tokens."""
    return _case(request.param)


def _case(config, batch=3):
    model = models.create(config)
    keys = jax.random.split(jax.random.key(0), 3)
    noise = jax.random.split(keys[0], len(jax.tree.leaves(model.abstract_params)))
    leaves, structure = jax.tree.flatten(model.init(keys[1]))
    leaves = [x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, noise, strict=True)]
    tokens = jax.random.randint(keys[2], (batch, config.num_positions), 0, config.vocab_size)
    return model, jax.tree.unflatten(structure, leaves), tokens


@pytest.mark.parametrize(
    ("size", "count"),
    [("s", 76_571_648), ("m", 455_157_760), ("l", 1_362_250_752), ("xl", 6_801_438_720)],
)
def test_parameter_counts_are_the_published_ones(size, count):
    config = models.igpt(size)
    assert models.create(config).num_params == count
    assert config.depth * (12 * config.dim**2 + 2 * config.dim) + 2050 * config.dim == count


def test_output_starts_uniform_and_a_classifier_adds_its_kernel_alone():
    model, _, tokens = _case(models.IGPTConfig(**SMALL, num_classes=5))
    assert model.num_params == models.create(CAUSAL[0]).num_params + 5 * SMALL["dim"]
    (logits, class_logits), _ = model.apply(model.init(jax.random.key(0)), tokens)
    assert logits.shape == (3, 16, 11) and class_logits.shape == (3, 5)
    assert not logits.any() and not class_logits.any()


def test_matches_hugging_face():
    with np.load(OFFICIAL) as file:
        arrays = {name: file[name] for name in file.files}
    released = {n.removeprefix("param/"): a for n, a in arrays.items() if n.startswith("param/")}
    config, params = weights.load(released, "igpt_hf", heads=4)
    assert config == models.IGPTConfig(
        vocab_size=16, num_positions=16, dim=32, depth=2, heads=4, use_bias=True
    )
    model = models.create(config)
    logits, trace = model.apply(params, jnp.asarray(arrays["tokens"], jnp.int32), trace=True)
    np.testing.assert_allclose(logits, arrays["logits"], rtol=1e-5, atol=1e-5)
    last = np.asarray(trace["out"][-1])
    normed = last / np.sqrt(np.mean(last**2, -1, keepdims=True) + 1e-5) * params["head_norm"]["scale"]
    np.testing.assert_allclose(normed, arrays["hidden_last"], rtol=1e-5, atol=1e-5)

    exported = weights.export(params, "igpt_hf")
    assert exported.keys() == released.keys()
    for name, value in released.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name)


def test_weights_that_do_not_fit_are_refused():
    with np.load(OFFICIAL) as file:
        released = {n.removeprefix("param/"): file[n] for n in file.files if n.startswith("param/")}
    with pytest.raises(InputError, match="heads: found 5; accepted: a divisor of 32"):
        weights.load(released, "igpt_hf", heads=5)
    del released["transformer.h.1.ln_2.weight"]
    with pytest.raises(InputError, match=r"missing transformer\.h\.1\.ln_2\.weight"):
        weights.load(released, "igpt_hf", heads=4)


def test_a_token_changes_later_logits_only(case):
    model, params, tokens = case
    apply = jax.jit(lambda tokens: model.apply(params, tokens)[0])
    before = apply(tokens)
    for t in (0, 7, 15):
        changed = np.abs(apply(tokens.at[:, t].add(1).__mod__(11)) - before).max(axis=(0, 2))
        assert not changed[: t + 1].any()  # Position t predicts token t itself.
        assert (changed[t + 1 :] > 0).all()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (layers.RMSNorm, partial(nnx.RMSNorm, epsilon=1e-5)),
        (layers.layer_norm, partial(nnx.LayerNorm, epsilon=1e-5, use_fast_variance=False)),
    ],
    ids=["rms", "layer"],
)
def test_norms_agree_with_flax(ours, theirs):
    x, wanted = jax.random.normal(jax.random.key(0), (2, 3, 5, 24))

    def value(make):
        graphdef, params = nnx.split(make(24, dtype=jnp.float32, rngs=nnx.Rngs(0)))
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        leaves = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]

        def apply(x, params):
            return nnx.merge(graphdef, jax.tree.unflatten(structure, params))(x)

        grads = jax.grad(lambda *a: jnp.sum(wanted * apply(*a)), (0, 1))(x, leaves)
        return [apply(x, leaves), *jax.tree.leaves(grads)]

    for actual, expected in zip(value(ours), value(theirs), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [layers.RMSNorm, layers.layer_norm])
def test_norms_in_bfloat16_are_the_same_with_and_without_a_gradient(make):
    norm = make(24, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (7, 24), jnp.bfloat16)
    np.testing.assert_array_equal(norm(x), jax.vjp(norm, x)[0])


@pytest.mark.parametrize(
    ("dtype", "offset", "bound"),
    [(jnp.bfloat16, 0, 2**-8), (jnp.bfloat16, 30, 2**-8), (jnp.float32, 0, 1e-6), (jnp.float32, 1000, 1e-4)],
)
def test_layer_norm_is_as_exact_as_what_it_returns(dtype, offset, bound):
    """Values and gradients against float64, where the mean is many deviations too: bfloat16 differs by rounding to 8 bits.
    Of float32 the mean, and so each difference from it, may be off by a rounding of 1000, 6e-5.
    """
    norm = layers.layer_norm(96, dtype=dtype, rngs=nnx.Rngs(0))
    x, wanted = jax.random.normal(jax.random.key(0), (2, 64, 96)).astype(dtype)
    x = x + jnp.asarray(offset, dtype)
    found, pull = jax.vjp(norm, x)

    def exact(x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    x, wanted = np.asarray(x, np.float64), np.asarray(wanted, np.float64)
    y, rate = exact(x), 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    mean = lambda a: a.mean(-1, keepdims=True)  # noqa: E731
    grad = rate * (wanted - mean(wanted) - y * mean(wanted * y))
    for actual, expected in ((found, y), (pull(wanted.astype(dtype))[0], grad)):
        error = np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected)
        assert error < bound


def test_bert_sees_everything_but_masked_tokens():
    model, params, tokens = _case(models.IGPTConfig(**SMALL, causal=False))
    assert model.num_params == models.create(CAUSAL[0]).num_params - SMALL["dim"]  # No start token.
    apply = jax.jit(lambda tokens: model.apply(params, tokens)[0])
    masked = tokens.at[:, 5].set(models.MASKED)
    assert np.abs(apply(masked) - apply(tokens)).max(axis=(0, 2)).min() > 0
    # A masked token enters as a zero embedding.
    zero = {**params, "token_embedding": params["token_embedding"].at[3].set(0)}
    np.testing.assert_allclose(
        model.apply(zero, masked)[0], model.apply(zero, masked.at[:, 5].set(3))[0], rtol=1e-6, atol=1e-6
    )


def test_cached_logits_equal_the_uncached_at_every_position(case):
    model, params, tokens = case
    expected = model.apply(params, tokens)[0]
    decode = jax.jit(model.decode)
    for stages in (1, 2):  # A cache of full length, and one that is cut short up to the middle.
        cache = model.init_cache(len(tokens), 16 // stages)
        for t in range(tokens.shape[1]):
            if t == 8 and stages == 2:
                cache = decoding.extend(model.init_cache(len(tokens)), cache, 0)
            # The token given at position 0 must not matter.
            logits, cache = decode(params, tokens[:, t - 1], cache, t)
            np.testing.assert_allclose(logits, expected[:, t], rtol=1e-5, atol=1e-5, err_msg=f"position {t}")
        assert {leaf.shape[2] for leaf in jax.tree.leaves(cache)} == {16}


@pytest.mark.parametrize("change", [{"scan": False}, {"remat": "full"}])
def test_scan_and_remat_change_nothing(case, change):
    model, params, tokens = case
    other = models.create(type(model.config)(**{**vars(model.config), **change}))

    def value(model):
        loss, grads = jax.jit(jax.value_and_grad(lambda p: model.apply(p, tokens)[0].var()))(params)
        return [loss, *jax.tree.leaves(grads)]

    for ours, theirs in zip(value(model), value(other), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_intermediates_of_blocks(case):
    model, params, tokens = case
    _, trace = model.apply(params, tokens, trace=True)
    assert trace["normed"].shape == (3, 3, 16, 24)
    if model.readings is not None:
        _, readings = model.apply(params, tokens, trace=model.readings)
        assert {name: value.shape for name, value in readings.items()} == {
            name: (3, 3) for name in models.trace.READINGS
        }


def test_the_configuration_follows_the_images():
    images = models.Images(size=28, requested_size=None, channels=1, num_classes=10, levels=256)
    config, size = models.igpt("s").fit(images)
    assert (size, config.num_positions, config.vocab_size, config.num_classes) == (28, 784, 256, 0)
    config, size = models.igpt("s", num_classes=3).fit(images._replace(size=64, channels=3))
    assert (size, config.num_positions, config.vocab_size, config.num_classes) == (32, 1024, 512, 10)
    config, size = models.igpt("s").fit(images._replace(requested_size=48, channels=3))
    assert (size, config.num_positions) == (48, 2304)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.igpt("huge"), "size of iGPT: found 'huge'; accepted: s, m, l, xl"),
        (lambda: models.create(models.igpt("s", heads=7)), "model.heads: found 7, which does not divide"),
        (
            lambda: models.create(models.crate("tiny")).init_cache(1),
            "found 'crate', which does not predict tokens one after the other",
        ),
        (
            lambda: models.igpt("s").fit(
                models.Images(28, None, 1, 10, 256, user_set=frozenset({"num_positions"}))
            ),
            r"model.num_positions: found 1024; accepted: 784, the pixels of 28×28 images",
        ),
        (
            lambda: models.igpt("s").fit(
                models.Images(8, None, 1, 10, 17, user_set=frozenset({"vocab_size"}))
            ),
            "model.vocab_size: found 512; accepted: 17, the grey levels of the images",
        ),
    ],
)
def test_bad_configurations(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    "tokens", [jnp.zeros((2, 17), jnp.int32), jnp.zeros((2, 16)), jnp.zeros(16, jnp.int32)]
)
def test_other_inputs_are_refused(tokens):
    model = models.create(CAUSAL[0])
    with pytest.raises(InputError, match=r"tokens: found .*; accepted: integers \[b, n\], n ≤ .* 16"):
        jax.eval_shape(model.apply, model.abstract_params, tokens)
