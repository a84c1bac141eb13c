"""The three forms on a trained run: against R, R^c and the sparse rate reduction of a network recomputed in float64."""

import jax
import numpy as np
import pytest

from crate_jax.analysis import forms, layerwise
from crate_jax.data import subset
from crate_jax.models.trace import POINTS
from crate_jax.reports.base import TrainedRun
from crate_jax.reports.layerwise import random_bases
from crate_jax.runs import builtin
from crate_jax.training.opening import open_run

EXAMPLES = 48
# Relative, of means over examples. The tokens too are recomputed here, so that up to six layers of float32 are in it.
RTOL = 1e-4


@pytest.fixture(scope="module")
def trained():
    return TrainedRun(*open_run(builtin.FOLDER / "crate-digits"), [])


@pytest.fixture(scope="module")
def looked_at(trained):
    """The batch of held-out digits, what the layers are measured to do to it, and the null's bases."""
    with jax.set_mesh(trained.run.mesh):
        random = random_bases(trained)
        observe = layerwise.Observer(trained.run.model, trained.run.task, trained.run.mesh, random)
        examples = subset.spread(trained.run.data.source("test"), EXAMPLES)
        batches = list(trained.batches(examples, EXAMPLES))
        measured = observe(trained.params, batches)
    (batch,) = batches
    assert batch["mask"].all()
    return batch["image"], measured, np.asarray(random, np.float64)


def layer_norm(x, norm):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * norm["scale"] + norm["bias"]


def network(params, images, config):
    """Every layer's tokens at POINTS, each as they are and layer-normed, and its U: CRATE written out in float64."""
    p, side = config.patch_size, config.image_size // config.patch_size
    pixels = (images.astype(np.float64) / 16 - 0.5) / 0.5
    patches = pixels.reshape(-1, side, p, side, p, 1).transpose(0, 1, 3, 2, 4, 5).reshape(-1, side**2, p * p)
    embed = params["patch_embed"]
    projected = layer_norm(patches, embed["norm_in"]) @ embed["projection"]["kernel"]
    tokens = layer_norm(projected + embed["projection"]["bias"], embed["norm_out"])
    first = np.broadcast_to(params["class_token"], (len(images), 1, config.dim))
    z = np.concatenate([first, tokens], axis=1) + params["position_embedding"]
    for number in range(config.depth):
        layer = jax.tree.map(lambda leaf, n=number: leaf[n], params["blocks"]["blocks"])
        mssa, dictionary = layer["mssa"], layer["ista"]["dictionary"]

        def seen(x, norm=layer["mssa_norm"]):
            return x, layer_norm(x, norm)

        points = {"before": seen(z)}
        w = np.einsum("bnd,kdp->bknp", points["before"][1], mssa["bases"])
        scores = np.exp(w @ np.swapaxes(w, -1, -2) / np.sqrt(config.head_dim))
        heads = scores / scores.sum(axis=-1, keepdims=True) @ w
        z = z + np.einsum("bknp,kpd->bnd", heads, mssa["output"]) + mssa["bias"]
        points["after_attention"] = seen(z)
        x = layer_norm(z, layer["ista_norm"])
        residual = x - x @ dictionary.T  # Rows: x Dᵀ are the papers' D x.
        z = np.maximum(x + config.step_size * (residual @ dictionary - config.penalty), 0)
        points["after_layer"] = seen(z)
        yield points, mssa["bases"]


def rate(y, eps_sq):
    """½ logdet(I + d/(n ε²) YᵀY), by the singular values."""
    n, d = y.shape[-2:]
    return 0.5 * np.log1p(d / (n * eps_sq) * np.linalg.svd(y, compute_uv=False) ** 2).sum(axis=-1)


def unit(y):
    return y / np.linalg.norm(y, axis=-1, keepdims=True)


def both(form, z, normed, bases):
    """R and R^c of a form, `[examples]`."""

    def project(x):
        return np.einsum("bnd,kdp->bknp", x, bases)

    if form == "released":
        tokens, parts, eps_sq = unit(normed), unit(project(normed)), 0.01
    else:
        scale = np.sqrt(z.shape[1]) / np.linalg.norm(z, axis=(1, 2), keepdims=True)
        tokens = z if form == "paper" else scale * z
        parts, eps_sq = project(tokens), 0.5
    return rate(tokens, eps_sq), rate(parts, eps_sq).sum(axis=1)


def test_the_forms_of_a_trained_run(trained, looked_at):
    """At every point of every layer, with the layer's own U and with random ones."""
    images, measured, random = looked_at
    config = trained.run.config.model
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.device_get(trained.params))
    layers = list(network(params, images, config))
    assert len(layers) == 6
    for number, (points, bases) in enumerate(layers):
        found = {}
        for point in POINTS:
            z, normed = points[point]
            nonzero = np.mean(measured[f"nonzero_fraction/{point}"]["mean"][number])
            # A code that float32 rounds to zero, or does not, is one of a hundred thousand.
            assert np.mean(z != 0) == pytest.approx(nonzero, abs=1e-4)
            for form in forms.FORMS:
                whole, parts = both(form, z, normed, bases)
                found[form, point] = parts
                null = both(form, z, normed, random[number])[1]
                zeros = config.penalty * np.count_nonzero(z, axis=(1, 2))
                size = np.mean(whole + parts + zeros)
                for quantity, expected, scale in (
                    ("rate", whole, 0),
                    ("subspace_rate", parts, 0),
                    ("random_subspace_rate", null, 0),
                    ("rate_reduction", whole - parts, size),
                    ("sparse_rate_reduction", whole - parts - zeros, size),
                ):
                    reading = measured[f"{form}/{quantity}/{point}"]["mean"][number]
                    np.testing.assert_allclose(
                        reading, expected.mean(), rtol=RTOL, atol=RTOL * scale, err_msg=f"{form} {quantity}"
                    )
        for form in forms.FORMS:
            change = found[form, "after_attention"] / found[form, "before"] - 1
            reading = measured[f"{form}/subspace_rate/change/attention"]["mean"][number]
            np.testing.assert_allclose(reading, change.mean(), atol=RTOL)


def test_what_is_said_of_the_trained_run(looked_at):
    """Of the built-in run too MSSA raises R^c in form paper in every layer, and lowers it in form released in nearly all."""
    _, measured, _ = looked_at
    assert "raises it in all 6 layers" in layerwise.signs(measured, "paper")
    lowered = np.array(measured["released/subspace_rate/change/attention"]["mean"]) < 0
    assert lowered.sum() >= 5
