"""Attention maps against NumPy under every kernel, and maps of shifted images against what they mean."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import InputError, models
from crate_jax.analysis.attention import at_shifts, attention_maps, compares_tokens
from crate_jax.models import cudnn
from tests.models.test_cudnn import answer

IMAGES = {"depth": 2, "image_size": 16, "patch_size": 4, "num_classes": 3, "dim": 16, "heads": 2}
CONFIGS = {
    "crate": models.CRATEConfig(head_dim=8, **IMAGES),
    "linear": models.CRATEConfig(head_dim=8, attention="linear", **IMAGES),
    "mean": models.CRATEConfig(head_dim=8, pool="mean", **IMAGES),
    "crate_alpha": models.CRATEAlphaConfig(**IMAGES),
    "crate_mae": models.CRATEMAEConfig(head_dim=8, **{**IMAGES, "num_classes": 0}),
    "vit": models.ViTConfig(**IMAGES),
}
CLASS_TOKEN = ("crate", "linear", "crate_alpha", "crate_mae", "vit")


@pytest.fixture
def kernels_on_cpu(monkeypatch):
    """cuDNN's kernel with a stand-in that answers as cuDNN does."""
    monkeypatch.setattr(cudnn, "_custom_call", answer)
    monkeypatch.setattr(cudnn, "DTYPES", ("bfloat16", "float32"))
    kernel = models.attention.KERNELS["cudnn"]._replace(dtypes=("float32",))
    monkeypatch.setitem(models.attention.KERNELS, "cudnn", kernel)


QUICK = ("crate", "vit")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_maps_are_those_of_numpy_under_every_kernel(kernels_on_cpu, name):
    """From the layer-normed tokens of the trace and the parameters, in float64."""
    config = dataclasses.replace(CONFIGS[name], dtype="float32")
    params = jax.jit(models.create(config).init)(jax.random.key(0))
    params = jax.tree.map(lambda x: 2 * x, params)  # Weights far from uniform.
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    kernels = [name for name, kernel in models.attention.KERNELS.items() if "gpu" in kernel.platforms]
    for kernel in kernels if config.has_attention else ["xla"]:
        model = models.create(dataclasses.replace(config, attention_kernel=kernel), "gpu")

        @jax.jit
        def look(params, model=model):
            normed = model.apply(params, images, trace=lambda seen: seen["normed"])[1]
            return attention_maps(model, params, images), normed

        found, normed = jax.device_get(look(params))
        np.testing.assert_allclose(found, in_numpy(name, params, normed), rtol=1e-4, atol=1e-6)
        total = found.sum(axis=(-2, -1))
        if name in CLASS_TOKEN and name != "linear":  # The class token keeps the rest for itself.
            assert found.shape == (2, 2, 2, 4, 4) and (total > 0).all() and (total < 1).all()


def in_numpy(name, params, normed):
    """The maps of normed tokens `[layers, b, n, d]`."""
    normed, blocks = normed.astype(np.float64), jax.tree.map(np.float64, params["blocks"]["blocks"])
    if name == "vit":
        qkv = np.einsum("lbnd,ldtkp->lbtknp", normed, blocks["qkv"]["kernel"])
        query, key, _ = np.moveaxis(qkv + blocks["qkv"]["bias"][:, None, :, :, None], 2, 0)
    else:
        query = key = np.einsum("lbnd,lkdp->lbknp", normed, blocks["mssa"]["bases"])
    scores = np.einsum("lbkip,lbkjp->lbkij", query, key) / np.sqrt(8)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = scores / scores.shape[-1] if name == "linear" else weights / weights.sum(-1, keepdims=True)
    chosen = weights[..., 0, 1:] if name in CLASS_TOKEN else weights.mean(axis=-2)
    return np.moveaxis(chosen.reshape(2, 2, 2, 4, 4), 1, 0)


def test_images_of_another_size_have_maps_of_their_own_shape():
    model = models.create(CONFIGS["crate"])
    maps = jax.eval_shape(
        lambda params: attention_maps(model, params, jnp.ones((1, 24, 8, 3))), model.abstract_params
    )
    assert maps.shape == (1, 2, 2, 6, 2)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_shifted_images_give_the_means_of_shifted_patches(stride):
    """With the mean of a patch as its value, the fine map is the image filtered by a box of a patch, at the fine centres."""
    images = np.random.default_rng(0).standard_normal((2, 12, 8, 1))

    def read(images):
        return images.reshape(2, 3, 4, 2, 4).mean(axis=(2, 4))

    fine = at_shifts(read, images, patch_size=4, stride=stride)
    assert fine.shape == (2, 12 // stride, 8 // stride)
    margin = (4 - stride) // 2
    for row in range(fine.shape[1]):
        for column in range(fine.shape[2]):
            top, left = row * stride - margin, column * stride - margin
            if 0 <= top <= 8 and 0 <= left <= 4:
                patch = images[:, top : top + 4, left : left + 4, 0]
                np.testing.assert_allclose(fine[:, row, column], patch.mean(axis=(1, 2)))
    assert np.isfinite(fine).all()


def test_bad_input_is_one_line():
    with pytest.raises(
        InputError, match="stride: found 3; accepted: a divisor of the patch size 4, such as 2"
    ):
        at_shifts(lambda x: x, np.zeros((1, 8, 8, 1)), patch_size=4, stride=3)
    tost = models.create(models.ToSTConfig(**IMAGES))
    with pytest.raises(
        InputError,
        match="attention of tost: found no attention between the tokens of an image; accepted: crate,",
    ):
        jax.eval_shape(
            lambda params: attention_maps(tost, params, jnp.zeros((1, 16, 16, 3))), tost.abstract_params
        )
    igpt = models.create(models.IGPTConfig(dim=16, depth=1, heads=2, num_positions=4))
    with pytest.raises(InputError, match="attention of igpt: found no attention"):
        attention_maps(igpt, {}, jnp.zeros((1, 16, 16, 3)))
    assert not compares_tokens(tost) and not compares_tokens(igpt)
    assert compares_tokens(models.create(CONFIGS["vit"])) and compares_tokens(models.create(CONFIGS["crate"]))
