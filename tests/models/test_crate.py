"""CRATE: sizes, parity with the released implementation, the one-matmul ISTA, scan, remat."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crate_jax import InputError, models, objectives, weights
from crate_jax.models import attention
from crate_jax.models.stack import Stack
from crate_jax.parallel.flops import matmul_flops

OFFICIAL = Path(__file__).parents[1] / "fixtures" / "crate_official.npz"


@pytest.fixture(scope="module")
def official():
    with np.load(OFFICIAL) as file:
        arrays = {name: file[name] for name in file.files}
    released = {n.removeprefix("param/"): a for n, a in arrays.items() if n.startswith("param/")}
    config, params = weights.load(released, "crate", heads=4)
    images = jnp.asarray(arrays["image_nchw"].transpose(0, 2, 3, 1))
    return arrays, models.create(config), params, images


def assert_close(actual, expected, name=""):
    """rtol 1e-5, with an absolute part scaled to the tensor's largest entry."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        np.asarray(actual), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(), err_msg=name
    )


@pytest.mark.parametrize(
    ("size", "count"),
    [("tiny", 6_090_856), ("small", 13_116_328), ("base", 22_796_008), ("large", 77_641_192)],
)
def test_parameter_counts_are_the_published_ones(size, count):
    assert models.create(models.crate(size)).num_params == count


def test_logits_and_activations_match_the_released_model(official):
    arrays, model, params, images = official
    logits, trace = jax.jit(lambda p, x: model.apply(p, x, trace=True))(params, images)
    assert_close(logits, arrays["logits"])
    for layer in range(model.config.depth):
        assert_close(trace["mssa_update"][layer], arrays[f"act/{2 * layer}_mssa_out"], f"mssa {layer}")
        assert_close(trace["ista_out"][layer], arrays[f"act/{2 * layer + 1}_ista_out"], f"ista {layer}")


def test_loss_and_every_gradient_match_the_released_model(official):
    arrays, model, params, images = official

    def loss_fn(params):
        logits, _ = model.apply(params, images)
        labels = optax.smooth_labels(jax.nn.one_hot(arrays["labels"], 10), 0.1)
        return optax.losses.softmax_cross_entropy(logits, labels).mean()

    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(params)
    assert_close(loss, arrays["loss"])
    exported = weights.export(grads, "crate")
    expected = {n.removeprefix("grad/"): a for n, a in arrays.items() if n.startswith("grad/")}
    assert exported.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(exported[name], value, name)


@pytest.mark.parametrize("change", [{"scan": False}, {"remat": "dots"}, {"remat": "full"}])
def test_scan_and_remat_change_nothing(official, change):
    _, model, params, images = official
    other = models.create(models.CRATEConfig(**{**vars(model.config), **change}))

    def value(model):
        return jax.jit(jax.value_and_grad(lambda p: model.apply(p, images)[0].var()))(params)

    chex.assert_trees_all_equal_structs(model.abstract_params, other.abstract_params)
    chex.assert_trees_all_close(value(model), value(other), rtol=1e-5, atol=1e-6)


def three_matmul_ista(z, dictionary, *, step_size, penalty):
    """The block as released: D z, Dᵀ D z and Dᵀ z for every token."""
    dz = z @ dictionary.T
    return jax.nn.relu(z + step_size * (z @ dictionary - dz @ dictionary) - step_size * penalty)


@pytest.mark.parametrize("size", ["tiny", "base", "large"])
def test_a_training_step_takes_under_two_thirds_of_the_released_matmul_flops(monkeypatch, size):
    """Of losses and gradients at 16 images of 224 px. Saved: two of ISTA's three products a token, one of the four of the
    gradient of attention whose query is its key, and all of the last layer that the class token does not see. Not saved,
    because it does not depend on the tokens: D − DᵀD and its gradient.
    """
    config = models.crate(size, scan=False, dtype="float32", attention_kernel="xla")
    images = jax.ShapeDtypeStruct((16, 224, 224, 3), jnp.float32)

    def flops():
        model = models.create(config)
        step = jax.value_and_grad(lambda p, x: model.apply(p, x)[0].mean())
        return matmul_flops(step, model.abstract_params, images)

    ours, call, xla = flops(), Stack.__call__, attention.KERNELS["xla"]
    apart = xla._replace(
        attend_shared=lambda tokens, **options: xla.attend(tokens, tokens, tokens, **options)
    )
    monkeypatch.setitem(attention.KERNELS, "xla", apart)
    monkeypatch.setattr(objectives, "ista_step", three_matmul_ista)
    monkeypatch.setattr(
        Stack, "__call__", lambda self, x, *, trace=False, wanted=None, **rest: call(self, x, trace=trace)
    )
    assert ours / flops() <= 0.645


def test_ista_of_one_token_forms_no_matrix():
    """Decoding: two products of a vector with D; D − DᵀD would be d products."""
    z, dictionary = jax.ShapeDtypeStruct((1, 512), jnp.float32), jax.ShapeDtypeStruct((512, 512), jnp.float32)
    step = lambda z, d: objectives.ista_step(z, d, step_size=0.1, penalty=0.1)  # noqa: E731
    assert matmul_flops(step, z, dictionary) == 2 * 2 * 512**2


@pytest.mark.parametrize("shape", [(4, 17, 64), (3, 5, 64)], ids=["many tokens", "few tokens"])
def test_ista_agrees_with_three_matmuls(shape):
    keys = jax.random.split(jax.random.key(0), 2)
    z = jax.random.normal(keys[0], shape)
    dictionary = jax.random.uniform(keys[1], (64, 64), minval=-0.3, maxval=0.3)

    def value(step):
        return jax.value_and_grad(lambda z, d: jnp.sum(step(z, d, step_size=0.1, penalty=0.1) ** 2), (0, 1))(
            z, dictionary
        )

    for one, three in zip(
        jax.tree.leaves(value(objectives.ista_step)), jax.tree.leaves(value(three_matmul_ista)), strict=True
    ):
        assert_close(one, three)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    config = models.crate("tiny", image_size=16, patch_size=8, num_classes=5, depth=2, dtype="bfloat16")
    model = models.create(config)
    params = model.init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    logits, trace = model.apply(params, images, trace=True)
    assert trace["ista_out"].dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    exact, _ = models.create(models.CRATEConfig(**{**vars(config), "dtype": "float32"})).apply(params, images)
    assert float(jnp.abs(logits - exact).max()) < 0.05 * float(jnp.abs(exact).max())


def test_scanned_program_does_not_grow_with_depth():
    def size(depth):
        model = models.create(models.crate("tiny", image_size=32, depth=depth))
        images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        return len(jax.jit(lambda p, x: model.apply(p, x)[0]).lower(model.abstract_params, images).as_text())

    assert size(24) < 1.05 * size(12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.crate("huge"), "size of CRATE: found 'huge'; accepted: tiny"),
        (lambda: models.create(models.crate("tiny", patch_size=15)), "does not divide model.image_size 224"),
        (
            lambda: models.create(models.crate("tiny", remat="all")),
            "model.remat: found 'all'; accepted: none",
        ),
        (lambda: models.create(models.crate("tiny", dtype="float8")), "model.dtype: found 'float8'"),
    ],
)
def test_bad_configurations(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_images_of_another_shape_are_refused():
    model = models.create(models.crate("tiny", image_size=32))
    with pytest.raises(InputError, match=r"found shape \(2, 28, 28, 3\); accepted: \[b, 32, 32, 3\]"):
        jax.eval_shape(model.apply, model.abstract_params, jnp.zeros((2, 28, 28, 3)))
