"""Terms on the layers of a white box: their values, the layers that they take, what they cost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import InputError, models
from crate_jax.runs.config import Config, RegularizerConfig
from crate_jax.tasks import make_task
from crate_jax.tasks.regularizer import make_regularizer
from crate_jax.tasks.tokenizer import ValueMeaning

SMALL = {"image_size": 8, "patch_size": 4, "channels": 1, "num_classes": 3, "dim": 8, "depth": 3, "heads": 2}
CRATE = models.CRATEConfig(**SMALL, head_dim=4)
ALPHA = models.CRATEAlphaConfig(**SMALL)


def traced(model_config, **options):
    """The terms of every layer, the total, and the reports that they are computed from."""
    config = Config(model=model_config, regularizer=RegularizerConfig(**options))
    model = models.create(model_config)
    params = jax.jit(model.init)(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    regularizer = make_regularizer(config)

    def both(params, key):
        layers = model.apply(params, images, trace=regularizer.reading(key))[1]
        return layers, regularizer.total(layers)[0]

    reports = jax.jit(lambda params: model.apply(params, images, trace=True)[1])(params)
    return jax.jit(both), params, reports


def rate(z, eps_sq):
    """½ logdet(I + d/(n ε²) ZᵀZ)."""
    n, d = z.shape[-2:]
    return 0.5 * np.linalg.slogdet(np.eye(d) + d / (n * eps_sq) * z.swapaxes(-1, -2) @ z)[1]


@pytest.mark.slow
@pytest.mark.parametrize("config", [CRATE, ALPHA], ids=["crate", "crate_alpha"])
def test_sparse_rate_reduction_is_that_of_the_objective(config):
    both, params, reports = traced(config, sparse_rate_reduction=2.0, layers="all", eps_sq=0.3, penalty=0.2)
    layers, total = both(params, jax.random.key(0))
    for layer in range(3):
        z, bases, codes = (
            np.asarray(reports[name][layer], np.float64) for name in ("out", "bases", "ista_out")
        )
        subspaces = np.einsum("bnd,kdp->bknp", z, bases)
        gap = rate(z, 0.3) - rate(subspaces, 0.3).sum(axis=-1)
        expected = (0.2 * np.abs(codes).sum(axis=(1, 2)) - gap).mean() / z.shape[1]
        np.testing.assert_allclose(layers["sparse_rate_reduction"][layer] * 3, expected, rtol=1e-5)
    np.testing.assert_allclose(total, 2 * layers["sparse_rate_reduction"].sum(), rtol=1e-6)


def test_a_random_layer_is_one_of_them_and_all_come_up():
    both, params, _ = traced(CRATE, sparse_rate_reduction=1.0, layers="random")
    nonzero = np.array(
        [np.asarray(both(params, jax.random.key(i))[0]["sparse_rate_reduction"]) != 0 for i in range(20)]
    )
    assert (nonzero.sum(axis=1) == 1).all()
    assert nonzero.any(axis=0).all()


def test_chosen_layers_alone_have_gradients():
    both, params, _ = traced(CRATE, sparse_rate_reduction=1.0, layers="0")
    grads = jax.jit(jax.grad(lambda p: both(p, jax.random.key(0))[1]))(params)["blocks"]["blocks"]
    moved = [bool(jnp.any(grads["ista"]["dictionary"][layer] != 0)) for layer in range(3)]
    assert moved == [True, False, False]
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(grads))


def test_orthogonality_is_zero_for_orthonormal_bases_and_only_for_them():
    both, params, reports = traced(CRATE, orthogonality=1.0)
    flat = np.asarray(reports["bases"], np.float64).transpose(0, 2, 1, 3).reshape(3, 8, 8)
    expected = ((flat.swapaxes(1, 2) @ flat - np.eye(8)) ** 2).sum((1, 2)) / 8
    layers, total = both(params, jax.random.key(0))
    np.testing.assert_allclose(np.asarray(layers["orthogonality"]) * 3, expected, rtol=1e-5)
    np.testing.assert_allclose(total, expected.mean(), rtol=1e-5)
    orthonormal = np.eye(8).reshape(8, 2, 4).swapaxes(0, 1)
    params["blocks"]["blocks"]["mssa"]["bases"] = jnp.asarray(np.stack([orthonormal] * 3), jnp.float32)
    assert float(both(params, jax.random.key(0))[1]) == 0


def test_the_terms_are_added_to_the_loss_and_reported():
    config = Config(model=CRATE, regularizer=RegularizerConfig(sparse_rate_reduction=0.1, orthogonality=0.2))
    plain = dataclasses.replace(config, regularizer=RegularizerConfig())
    model = models.create(CRATE)
    params = model.init(jax.random.key(0))
    batch = {"image": jnp.zeros((2, 8, 8, 1), jnp.uint8), "label": jnp.array([0, 1])}

    def loss(config):
        apply = lambda *args, **options: model.apply(params, *args, **options)  # noqa: E731
        return make_task(config, ValueMeaning(255)).loss(apply, batch, jax.random.key(0))

    (with_terms, metrics), (without, _) = jax.jit(lambda: (loss(config), loss(plain)))()
    added = 0.1 * metrics["sparse_rate_reduction"] + 0.2 * metrics["orthogonality"]
    np.testing.assert_allclose(with_terms - without, added, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (models.ViTConfig(**SMALL), {"orthogonality": 1.0}, "'vit' is a black box; accepted: crate"),
        (CRATE, {"sparse_rate_reduction": 1.0, "layers": "0,3"}, "found '0,3'; accepted: all, random, or"),
        (CRATE, {"sparse_rate_reduction": 1.0, "layers": "first"}, "found 'first'; accepted"),
    ],
)
def test_mistakes(model, options, message):
    with pytest.raises(InputError, match=message):
        make_regularizer(Config(model=model, regularizer=RegularizerConfig(**options)))
