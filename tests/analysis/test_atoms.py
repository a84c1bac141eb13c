"""Top examples and classes of atoms in a stream; heads and atoms taken out of a model."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import InputError, models
from crate_jax.analysis import interventions
from crate_jax.analysis.atoms import peak_reader, top_examples

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_a_stream_finds_what_sorting_finds(size):
    peaks, labels = RNG.standard_normal((50, 6)), RNG.integers(0, 3, 50)
    places = RNG.integers(0, 9, (50, 6))
    parts = ((peaks[i : i + size], places[i : i + size], labels[i : i + size]) for i in range(0, 50, size))
    found = top_examples(parts, num_classes=4, top=5)
    order = np.argsort(-peaks, axis=0)[:5].T
    np.testing.assert_array_equal(found.images, order)
    np.testing.assert_array_equal(found.peaks, np.take_along_axis(peaks.T, order, axis=1))
    np.testing.assert_array_equal(found.places, np.take_along_axis(places.T, order, axis=1))
    np.testing.assert_allclose(found.active, (peaks > 0).mean(axis=0))
    for label in range(3):
        np.testing.assert_allclose(found.class_means[:, label], peaks[labels == label].mean(axis=0))


def test_selectivity_is_one_for_an_atom_of_one_class_and_zero_for_one_of_all():
    labels = np.arange(30) % 3
    peaks = np.stack([labels == 1, np.ones(30), np.zeros(30)], axis=1).astype(float)
    found = top_examples([(peaks, np.zeros((30, 3), int), labels)], num_classes=3)
    np.testing.assert_allclose(found.selectivity, [1, 0, 0])
    alone = top_examples([(peaks, np.zeros((30, 3), int), np.zeros(30, int))], num_classes=1)
    np.testing.assert_allclose(alone.selectivity, 0)


def test_no_examples():
    with pytest.raises(InputError, match="atoms: found no examples; accepted: one or more"):
        top_examples([], num_classes=2)


def test_the_class_token_is_not_a_place():
    codes = jnp.asarray([[[9.0, 0], [1, 5], [3, 2]]])
    found = peak_reader(True)({"ista_out": codes})
    assert found["peak"].tolist() == [[3, 5]] and found["place"].tolist() == [[1, 0]]
    assert peak_reader(False)({"ista_out": codes})["place"].tolist() == [[0, 1]]


IMAGES = {"depth": 2, "image_size": 8, "patch_size": 4, "num_classes": 3, "dim": 8, "heads": 2}
CONFIGS = {
    "crate": models.CRATEConfig(head_dim=4, dtype="float32", **IMAGES),
    "crate_alpha": models.CRATEAlphaConfig(overcomplete=2, penalty=0.0, dtype="float32", **IMAGES),
    "vit": models.ViTConfig(dtype="float32", **IMAGES),
}
INPUTS = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
# What a head's share of the output is read off.
UPDATE = {"crate": "mssa_update", "vit": "attention_out"}


@functools.cache
def made(name):
    """A model, its parameters, and its jitted forward pass with a trace."""
    model = models.create(CONFIGS[name])
    params = jax.jit(model.init)(jax.random.key(0))
    # Heads for classes and biases start at zero in some families.
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), params)
    return model, params, jax.jit(lambda params: model.apply(params, INPUTS, trace=some))


def some(seen):
    """What these tests look at of a layer."""
    names = (
        "normed",
        "query",
        "key",
        "subspace_in",
        "mssa_in",
        "mssa_update",
        "attention_out",
        "ista_out",
        "out",
    )
    return {name: seen[name] for name in names if name in seen}


@pytest.mark.parametrize("name", ["crate", "vit"])
def test_a_head_that_is_taken_away_leaves_the_others(name):
    """Layer 1 gives what it gave without the sum of head 1's weighted values; layer 0 gives the same."""
    _, params, apply = made(name)
    _, whole = apply(params)
    _, without = apply(interventions.without_head(params, name, 1, 1))
    whole, without = (jax.tree.map(lambda x: np.asarray(x, np.float64), each) for each in (whole, without))
    blocks = jax.tree.map(lambda x: np.asarray(x[1, ...], np.float64), params["blocks"]["blocks"])
    if name == "vit":
        query, key = whole["query"][1, :, 1], whole["key"][1, :, 1]
        value = whole["normed"][1] @ blocks["qkv"]["kernel"][:, 2, 1] + blocks["qkv"]["bias"][2, 1]
        output = blocks["attention_output"]["kernel"][1]
    else:
        query = key = value = whole["subspace_in"][1, :, 1]
        output = blocks["mssa"]["output"][1]
    scores = query @ key.swapaxes(1, 2) / 2
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    share = weights / weights.sum(-1, keepdims=True) @ value @ output
    gone = whole[UPDATE[name]] - without[UPDATE[name]]
    np.testing.assert_allclose(gone[1], share, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gone[0], 0, atol=1e-6)


def test_an_atom_that_is_taken_away_is_zero_everywhere_and_the_layers_before_are_the_same():
    model, params, apply = made("crate")

    def edit(layer, tokens):
        return jnp.where((layer == 0) & (jnp.arange(8) == 5), 0, tokens)

    _, whole = apply(params)
    see = partial(model.apply, trace=lambda seen: {"mssa_in": seen["mssa_in"]}, edit=edit)
    logits, without = jax.jit(see)(params, INPUTS)
    np.testing.assert_allclose(without["mssa_in"][0], whole["mssa_in"][0], rtol=1e-5)
    expected = np.array(whole["out"][0])
    assert np.abs(expected[..., 5]).max() > 0
    expected[..., 5] = 0
    np.testing.assert_allclose(without["mssa_in"][1], expected, rtol=1e-5, atol=1e-6)
    # Without a trace the last layer is computed for the class token alone.
    ablated = jax.jit(lambda layer: interventions.logits_without_atom(model, layer, 5)(params, INPUTS))
    np.testing.assert_allclose(ablated(0), logits, rtol=1e-4, atol=1e-6)
    assert np.abs(ablated(1) - logits).max() > 0


def test_an_atom_of_an_overcomplete_dictionary_takes_its_column_along():
    model, params, apply = made("crate_alpha")
    _, whole = apply(params)
    decoder = params["blocks"]["blocks"]["odl"]["decoder"]
    edited = interventions._replaced(params, ("odl", "decoder"), lambda leaf: leaf.at[1, :, 9].set(0))
    expected, without = apply(edited)
    share = whole["ista_out"][1, :, :, 9:10] * decoder[1, :, 9]
    assert np.abs(share).max() > 0
    np.testing.assert_allclose(whole["out"][1] - without["out"][1], share, rtol=1e-4, atol=1e-5)
    logits = jax.jit(interventions.logits_without_atom(model, 1, 9))(params, INPUTS)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)


def test_the_change_of_logits():
    logits = jnp.asarray([[2.0, 0, 0], [1, 0, 0]])
    found = interventions.logit_change(logits, logits + 5)
    for value in found.values():
        np.testing.assert_allclose(value, 0, atol=1e-6)
    found = interventions.logit_change(logits, jnp.asarray([[0.0, 2, 0], [2, 0, 0]]))
    assert found["flipped"].tolist() == [1, 0]
    p, q = (np.exp(x) / np.exp(x).sum() for x in (np.array([1.0, 0, 0]), np.array([2.0, 0, 0])))
    assert found["divergence"][1] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-5)
    assert found["change"][1] == pytest.approx(1)


def test_bad_places_are_one_line():
    model = models.create(CONFIGS["crate"])
    with pytest.raises(InputError, match="layer: found 2; accepted: 0 to 1"):
        interventions.logits_without_head(model, 2, 0)
    with pytest.raises(InputError, match="head: found -1; accepted: 0 to 1"):
        interventions.logits_without_head(model, 0, -1)
    with pytest.raises(InputError, match="atom: found 8; accepted: 0 to 7"):
        interventions.logits_without_atom(model, 0, 8)
    with pytest.raises(InputError, match="ablation of an atom: found vit; accepted: crate, crate_alpha"):
        interventions.logits_without_atom(models.create(CONFIGS["vit"]), 0, 0)
    with pytest.raises(InputError, match="ablation of a head: found tost; accepted: crate"):
        interventions.without_head({}, "tost", 0, 0)
