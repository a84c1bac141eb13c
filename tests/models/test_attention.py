"""Attention against a float64 reference, values and gradients; what it refuses; how its kernel is chosen."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import InputError, models
from crate_jax.models import attention, xla
from crate_jax.models.attention import attend, attend_cached, attend_shared

# Odd lengths, and one token alone: (b, n, heads, p).
SHAPES = [(2, 10, 3, 8), (3, 7, 1, 5), (2, 1, 2, 4)]
OPTIONS = [
    "all",
    "causal",
    "mask",
    "lengths",
    "causal mask",
    "causal lengths",
    "mask lengths",
    "real",
    "causal real",
]


def reference(query, key, value, *, causal=False, mask=None, lengths=None, real=None, scale=None):
    """softmax(s Q Kᵀ) V and its gradients for a given ∂O, written out in float64: a function of ∂O."""
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    (b, n, heads, p), m = q.shape, k.shape[1]
    scale = 1 / np.sqrt(p) if scale is None else scale
    allowed = np.ones((b, heads, n, m), bool)
    if causal:
        allowed &= np.tril(np.ones((n, m), bool))
    if mask is not None:
        allowed &= np.asarray(mask)
    if lengths is not None:
        present = np.arange(n) < np.asarray(lengths)[:, None]
        allowed &= present[:, None, None, :] & present[:, None, :, None]
    if real is not None:
        allowed[..., real:] = False
    scores = np.where(allowed, scale * np.einsum("bihp,bjhp->bhij", q, k), -np.inf)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights = np.nan_to_num(weights / weights.sum(-1, keepdims=True))

    def gradients(grad):
        grad_weights = np.einsum("bihp,bjhp->bhij", grad, v)
        grad_scores = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdims=True))
        return (
            scale * np.einsum("bhij,bjhp->bihp", grad_scores, k),
            scale * np.einsum("bhij,bihp->bjhp", grad_scores, q),
            np.einsum("bhij,bihp->bjhp", weights, grad),
        )

    return np.einsum("bhij,bjhp->bihp", weights, v), gradients


def options_for(name, shape):
    b, n, heads, _ = shape
    found = {"causal": "causal" in name}
    if "mask" in name:
        # With the diagonal: one row of one example sees nothing.
        mask = jax.random.bernoulli(jax.random.key(3), 0.6, (b, heads, n, n)) | jnp.eye(n, dtype=bool)
        found["mask"] = mask.at[0, 0, n // 2].set(False)
    if "lengths" in name:
        found["lengths"] = jnp.arange(b) * n // 2  # The first example has no token at all.
    if "real" in name:
        found["real"] = max(n // 2, 1)
    return found


def close(actual, expected, tolerance=2e-6):
    expected = np.asarray(expected)
    scale = max(np.abs(expected).max(), 1e-3)
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=0, atol=tolerance * scale)


@pytest.fixture(params=[3, 4, 256])
def block(request, monkeypatch):
    monkeypatch.setattr(xla, "BLOCK", request.param)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_the_references(block, name, shape):
    query, key, value, grad = jax.random.normal(jax.random.key(0), (4, *shape))
    options = options_for(name, shape)
    out, pullback = jax.vjp(partial(attend, **options), query, key, value)
    expected, gradients = reference(query, key, value, **options)
    close(out, expected)
    for found, wanted in zip(pullback(grad), gradients(np.asarray(grad, np.float64)), strict=True):
        close(found, wanted)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_shared_form_is_the_reference_with_one_tensor(block, name, shape):
    tokens, grad = jax.random.normal(jax.random.key(0), (2, *shape))
    options = options_for(name, shape) | {"scale": 0.3}
    out, pullback = jax.vjp(partial(attend_shared, **options), tokens)
    expected, gradients = reference(tokens, tokens, tokens, **options)
    close(out, expected)
    close(pullback(grad)[0], sum(gradients(np.asarray(grad, np.float64))))


@pytest.mark.parametrize("examples", [8, 6])
def test_a_batch_in_pieces_is_the_batch(examples, monkeypatch):
    """Six examples are no four equal pieces: they are taken whole."""
    monkeypatch.setattr(xla, "LARGE", 0)
    query, key, value, grad = jax.random.normal(jax.random.key(0), (4, examples, 7, 2, 5))

    def both(kernel, call, *operands):
        out, pullback = jax.vjp(partial(call, causal=True, kernel=kernel), *operands)
        return out, *pullback(grad)

    for call, operands in ((attend, (query, key, value)), (attend_shared, (query,))):
        split = jax.make_jaxpr(partial(both, "xla_split", call))(*operands)
        assert ("split" in str(split)) == (examples == 8)
        for found, wanted in zip(
            both("xla_split", call, *operands), both("xla", call, *operands), strict=True
        ):
            close(found, wanted)


def test_more_keys_than_queries_and_a_broadcast_mask():
    query = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
    key, value = jax.random.normal(jax.random.key(1), (2, 2, 9, 3, 8))
    mask = jnp.arange(9) != 4  # One axis: the keys.
    out, pullback = jax.vjp(lambda *x: attend(*x, mask=mask, scale=0.5), query, key, value)
    expected, gradients = reference(query, key, value, mask=mask, scale=0.5)
    close(out, expected)
    for found, wanted in zip(pullback(jnp.ones_like(out)), gradients(np.ones(out.shape)), strict=True):
        close(found, wanted)


def test_large_scores_are_exact_and_finite():
    query = 100 * jax.random.normal(jax.random.key(0), (1, 6, 2, 4))
    out, pullback = jax.vjp(attend_shared, query)
    close(out, reference(query, query, query)[0])
    assert bool(jnp.isfinite(pullback(out)[0]).all())


@pytest.mark.parametrize("name", ["all", "causal", "causal lengths"])
def test_bfloat16_stays_near_the_reference(name):
    """Scores and softmax are float32: what is left is the rounding (2⁻⁹) of weights, of ∂S and of the results."""
    shape = (2, 50, 3, 48)
    tokens, grad = jax.random.normal(jax.random.key(0), (2, *shape), jnp.bfloat16)
    options = options_for(name, shape)
    out, pullback = jax.vjp(partial(attend_shared, **options), tokens)
    expected, gradients = reference(tokens, tokens, tokens, **options)
    assert out.dtype == jnp.bfloat16
    close(out, expected, 2**-7)
    close(pullback(grad)[0], sum(gradients(np.asarray(grad, np.float64))), 2**-6)


def test_tokens_that_are_not_real_change_nothing():
    tokens = jax.random.normal(jax.random.key(0), (2, 8, 2, 4))
    lengths = jnp.array([5, 8])
    other = tokens.at[0, 5:].set(7.0)
    outs = [attend_shared(x, lengths=lengths) for x in (tokens, other)]
    np.testing.assert_array_equal(*outs)
    assert not outs[0][0, 5:].any()
    close(outs[0][:1, :5], attend_shared(tokens[:1, :5]))
    gradient = jax.grad(lambda x: jnp.sum(attend_shared(x, lengths=lengths) ** 2))(tokens)
    assert not gradient[0, 5:].any() and gradient[0, :5].any()


def test_attention_works_under_jit_vmap_and_checkpoint():
    tokens = jax.random.normal(jax.random.key(0), (3, 2, 6, 2, 4))
    loss = lambda x: jnp.sum(jnp.sin(attend_shared(x, causal=True)))  # noqa: E731
    expected = jnp.stack([jax.grad(loss)(x) for x in tokens])
    for found in (jax.vmap(jax.grad(loss)), jax.jit(jax.vmap(jax.grad(jax.checkpoint(loss))))):
        np.testing.assert_allclose(found(tokens), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("position", [0, 3, 7])
def test_a_cached_query_is_the_last_row_of_causal_attention(position):
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 8, 3, 5))
    caches = (jnp.swapaxes(x, 1, 2) for x in (key, value))
    out = attend_cached(query[:, position], *caches, jnp.int32(position))
    close(out, reference(query, key, value, causal=True)[0][:, position])


X = jnp.zeros((2, 4, 3, 8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attend(X[0], X[0], X[0]), r"found query \(4, 3, 8\), .*; accepted: \[b, n, heads, p\]"),
        (lambda: attend(X, X[..., :4], X), r"key \(2, 4, 3, 4\)"),
        (lambda: attend(X, X[:, :3], X[:, :3], causal=True), "found 4 queries and 3 keys; accepted: as many"),
        (lambda: attend_shared(X, lengths=jnp.ones(3, int)), r"lengths of attention: found shape \(3,\)"),
        (lambda: attend_shared(X, mask=jnp.ones((4, 4))), "mask of attention: found float32"),
        (lambda: attend_shared(X, mask=jnp.ones((3, 4, 5), bool)), r"broadcast to \(2, 3, 4, 4\)"),
        (lambda: attend_shared(X, kernel="auto"), "kernel of attention .*: found 'auto'; accepted: xla"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


SMALL = models.crate("tiny", depth=2, image_size=32)


def test_auto_is_decided_by_the_platform_and_models_hold_the_decision():
    for platform, dtype, kernel, scan in (
        ("cpu", "float32", "xla_split", True),
        ("gpu", "bfloat16", "cudnn", False),
        ("cuda", "bfloat16", "cudnn", False),
        ("tpu", "bfloat16", "xla", True),  # Few tokens: the kernel would pad 17 to 128.
    ):
        resolved = models.resolve(SMALL, platform)
        assert resolved == dataclasses.replace(SMALL, dtype=dtype, attention_kernel=kernel, scan=scan)
        assert models.create(SMALL, platform).resolved == resolved
        assert models.resolve(resolved, platform) == resolved
    model = models.create(SMALL)
    assert (model.config, model.resolved) == (SMALL, models.resolve(SMALL, jax.default_backend()))
    explicit = dataclasses.replace(SMALL, dtype="bfloat16")
    assert models.resolve(explicit, "cpu").dtype == "bfloat16"
    # Where the platform's own kernel does not take the model, xla does.
    for field, value in (("dtype", "float32"), ("head_dim", 60)):
        assert models.resolve(dataclasses.replace(SMALL, **{field: value}), "gpu").attention_kernel == "xla"
    long = dataclasses.replace(SMALL, image_size=224)
    assert models.resolve(long, "tpu").attention_kernel == "splash"
    assert models.resolve(dataclasses.replace(long, dtype="float32"), "tpu").attention_kernel == "xla"
    assert models.resolve(dataclasses.replace(SMALL, depth=48), "gpu").scan
    assert not models.resolve(dataclasses.replace(SMALL, scan=False), "cpu").scan


def test_deterministic_leaves_out_what_does_not_repeat_its_bits():
    assert models.create(SMALL, "gpu", deterministic=True).resolved.attention_kernel == "xla"
    for platform in ("cpu", "tpu"):
        assert models.resolve(SMALL, platform, deterministic=True) == models.resolve(SMALL, platform)
    forced = dataclasses.replace(SMALL, attention_kernel="cudnn")
    with pytest.raises(InputError, match=r"'cudnn' with deterministic=True; .* accepted: auto, xla"):
        models.create(forced, "gpu", deterministic=True)


def test_a_kernel_must_be_there_and_run_on_the_platform(monkeypatch):
    unknown = dataclasses.replace(SMALL, attention_kernel="flash")
    with pytest.raises(InputError, match="attention_kernel: found 'flash'; accepted: auto, xla"):
        models.create(unknown)
    calls = []

    def shared(tokens, **options):
        calls.append(options)
        return attention.KERNELS["xla"].attend_shared(tokens, **options)

    kernel = attention.KERNELS["xla"]._replace(attend_shared=shared, platforms=("gpu",))
    monkeypatch.setitem(attention.KERNELS, "toy", kernel)
    toy = dataclasses.replace(SMALL, attention_kernel="toy")
    with pytest.raises(InputError, match="found 'toy', which does not run on cpu; accepted there: auto, xla"):
        models.create(toy, "cpu")
    for change in ({"dtype": "float32"}, {"head_dim": 60}):
        refused = dataclasses.replace(SMALL, attention_kernel="cudnn", **change)
        with pytest.raises(
            InputError, match=r"'cudnn' for .* wide; accepted by it: bfloat16, and multiples of 8"
        ):
            models.create(refused, "gpu")
    model = models.create(dataclasses.replace(toy, dtype="float32"), "gpu")
    jax.eval_shape(model.apply, model.abstract_params, jnp.zeros((1, 32, 32, 3)))
    assert calls == [{"causal": False, "mask": None, "lengths": None, "real": None, "scale": 0.125}]


@pytest.mark.parametrize("config", [models.tost("tiny"), models.crate("tiny", attention="linear")])
def test_a_model_without_attention_takes_no_kernel(config, monkeypatch):
    monkeypatch.setitem(attention.KERNELS, "toy", attention.KERNELS["xla"])
    assert models.resolve(config).attention_kernel == "xla"
    with pytest.raises(InputError, match=f"model.attention_kernel of {config.family}: found 'toy'"):
        models.resolve(dataclasses.replace(config, attention_kernel="toy"))


def test_a_module_takes_resolved_configurations_only():
    from flax import nnx

    with pytest.raises(InputError, match="found 'auto'; accepted: float32, bfloat16"):
        models.CRATE(SMALL, nnx.Rngs(0))
    images = jnp.zeros((1, 32, 32, 3))
    assert models.CRATE(models.resolve(SMALL), nnx.Rngs(0))(images)[0].shape == (1, 1000)


def test_a_configuration_written_before_the_field_loads():
    from crate_jax.runs.config import from_config_dict

    assert from_config_dict({"model": {"family": "crate", "dim": 64}}).model.attention_kernel == "auto"
