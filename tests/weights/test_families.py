"""Each family: found from names and shapes, there and back through every format, bit for bit."""

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from crate_jax import InputError, models, weights
from crate_jax.weights import files
from tests.weights.conftest import PUBLISHED, SMALL, random_params, released, same_model

FAMILIES = list(weights.FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_found_from_names_and_shapes(family):
    config = SMALL[family]
    found = weights.inspect(released(family), heads=config.heads)
    assert (found.family, found.problems) == (family, [])
    assert same_model(found.config, config)
    assert found.num_params == sum(np.size(leaf) for leaf in jax.tree.leaves(found.params()))


def test_every_family_has_a_published_size_whose_heads_are_known():
    for family, config in PUBLISHED.items():
        params = models.create(config).abstract_params
        # Only shapes count here, and bytes are small.
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.uint8), params)
        found = weights.inspect(weights.export(zeros, family))
        assert (found.family, found.heads) == (family, config.heads)
        assert same_model(found.config, config), family


@pytest.mark.parametrize("suffix", files.WRITERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_through_a_file(family, suffix, tmp_path):
    arrays = released(family)
    files.write(tmp_path / f"file{suffix}", arrays, {})
    config, params = weights.load(tmp_path / f"file{suffix}", heads=SMALL[family].heads)
    back = weights.export(params, family, config)
    assert list(back) == list(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(back[name], value)
        assert back[name].dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_at_full_size(family, tmp_path):
    arrays = released(family, PUBLISHED[family])
    for suffix in files.WRITERS:
        files.write(tmp_path / f"file{suffix}", arrays, {})
        config, params = weights.load(tmp_path / f"file{suffix}")
        back = weights.export(params, family, config)
        assert all(np.array_equal(back[name], value) for name, value in arrays.items())
        (tmp_path / f"file{suffix}").unlink()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_other_types_are_cast_and_that_is_said(dtype, suffix, tmp_path):
    arrays = {name: value.astype(dtype) for name, value in released("crate_alpha_npz").items()}
    path = tmp_path / f"file{suffix}"
    np.savez(path, **arrays) if suffix == ".npz" else save_file(arrays, path)
    found = weights.inspect(path)
    name = str(np.dtype(dtype))
    assert found.types == {name: len(arrays)}
    assert found.notes == [f"{len(arrays)} of {len(arrays)} arrays cast from {name} to float32"]
    back = weights.export(found.params(), "crate_alpha_npz")
    for name, value in arrays.items():
        np.testing.assert_array_equal(back[name], value.astype(np.float32))


def test_a_value_beyond_float32_is_refused():
    arrays = {name: value.astype(np.float64) for name, value in released("crate").items()}
    arrays["mlp_head.1.bias"][0] = 1e300
    with pytest.raises(InputError, match=r"mlp_head.1.bias holds values that are not finite in float32"):
        weights.load(arrays, heads=2)


def test_heads_are_asked_for_with_those_that_there_can_be():
    with pytest.raises(
        InputError, match=r"--heads=N, which divides 16: 2 \(of 8 features\), 1 \(of 16 features\)"
    ):
        weights.load(released("vit_timm"))
    assert weights.load(released("crate_alpha_npz"))[0].heads == 2
    with pytest.raises(InputError, match=r"heads: found 4; accepted: 2, as the shapes say"):
        weights.load(released("igpt_openai"), heads=4)


def test_what_openais_arrays_mean():
    """q, k, v and c against the sums of the released code, written out."""
    arrays, config = released("igpt_openai"), SMALL["igpt_openai"]
    _, params = weights.load(arrays)
    blocks, x = params["blocks"]["blocks"], np.random.default_rng(1).standard_normal((5, 16))
    for place, letter in enumerate("qkv"):
        w = arrays[f"model/h1/attn/{letter}_proj"]
        ours = np.einsum("nd,dhp->hnp", x, blocks["qkv"]["kernel"][1][:, place])
        np.testing.assert_allclose(ours, np.einsum("sf,hef->hse", x, w), rtol=1e-6)
    mixed = np.random.default_rng(2).standard_normal((2, 5, 8))
    ours = np.einsum("hnp,hpd->nd", mixed, blocks["attention_output"]["kernel"][1])
    np.testing.assert_allclose(
        ours, np.einsum("hse,hef->sf", mixed, arrays["model/h1/attn/c_proj"]), rtol=1e-6
    )
    np.testing.assert_array_equal(params["token_embedding"][config.vocab_size], arrays["model/sos"])


def test_hugging_face_and_openai_name_the_same_model():
    """Without biases the two forms of iGPT are one model: the same numbers under both names give the same logits."""
    params = random_params(SMALL["igpt_openai"])
    zeros = random_params(SMALL["igpt_hf"])
    blocks = zeros["blocks"]["blocks"]
    for name, layer in blocks.items():
        layer.update({"bias": np.zeros_like(layer["bias"])} if "bias" in layer else {})
        layer.update({key: value for key, value in params["blocks"]["blocks"][name].items()})
    both = {**params, "blocks": {"blocks": blocks}}
    config, loaded = weights.load(weights.export(both, "igpt_hf"), heads=2)
    tokens = np.arange(16)[None] % 8
    expected, _ = models.create(SMALL["igpt_openai"]).apply(params, tokens)
    np.testing.assert_allclose(models.create(config).apply(loaded, tokens)[0], expected, rtol=1e-5)


def test_the_released_code_has_other_constants():
    config = SMALL["crate"]
    params = random_params(config)
    weights.export(params, "crate", config)
    for changes, words in (
        ({"penalty": 0.3}, "model.penalty is 0.3, there 0.1"),
        ({"ista": "unrolled"}, "model.ista"),
    ):
        with pytest.raises(InputError, match="computes another model: ") as error:
            weights.export(params, "crate", config.__class__(**{**vars(config), **changes}))
        assert words in str(error.value)
