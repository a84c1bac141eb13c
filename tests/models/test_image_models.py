"""CRATE-α, ToST and ViT: sizes, parity with the released CRATE-α, cost; and the token grid that all image models share."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crate_jax import InputError, models, objectives, weights
from crate_jax.models.tost import TSSA
from crate_jax.parallel.flops import matmul_flops

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL = {"image_size": 8, "patch_size": 4, "channels": 1, "num_classes": 3, "dim": 8, "depth": 2, "heads": 2}
ALL = {
    "crate": models.CRATEConfig(**SMALL, head_dim=4),
    "crate_alpha": models.CRATEAlphaConfig(**SMALL),
    "tost": models.ToSTConfig(**SMALL),
    "vit": models.ViTConfig(**SMALL),
}


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (models.vit("tiny"), 5_717_416),
        (models.vit("small"), 22_050_664),
        (models.vit("base"), 86_567_656),
        (models.vit("large"), 304_326_632),
        (models.tost("tiny"), 4_832_344),
        # Counted from the released PyTorch module, made without memory on the meta device.
        (models.crate_alpha("tiny"), 4_811_944),
        (models.crate_alpha("small"), 40_975_912),
        (models.crate_alpha("base"), 72_328_936),
        (models.crate_alpha("base", patch_size=32), 73_985_512),
        (models.crate_alpha("large"), 253_650_920),
        (models.crate_alpha("huge"), 526_819_560),
    ],
)
def test_parameter_counts(config, count):
    assert models.create(config).num_params == count


@pytest.fixture(scope="module")
def official():
    with np.load(FIXTURES / "crate_alpha_official.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, {n.removeprefix("param/"): a for n, a in arrays.items() if n.startswith("param/")}


def test_crate_alpha_matches_the_released_model(official):
    arrays, released = official
    config, params = weights.load(released, "crate_alpha", heads=4)
    logits, _ = models.create(config).apply(params, jnp.asarray(arrays["image_nchw"].transpose(0, 2, 3, 1)))
    expected = arrays["logits"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_crate_alpha_weights_go_there_and_back_in_both_formats(official):
    _, released = official
    config, params = weights.load(released, "crate_alpha", heads=4)
    back = weights.export(params, "crate_alpha")
    assert back.keys() == released.keys()
    for name, value in released.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    flat = weights.export(params, "crate_alpha_npz")
    assert flat["Transformer/encoderblock_1/MultiHeadDotProductSubspaceAttention_0/proj/kernel"].shape == (
        32,
        4,
        8,
    )
    saved = {f"params/{name}": value for name, value in flat.items()} | {"opt/0/count": np.zeros(())}
    again, other = weights.load(saved, "crate_alpha_npz", heads=4)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, params, other)


def vit_oracle(released, images, *, heads, patch):
    """timm's ViT in float64 NumPy, on its own parameter names."""
    p = {name: np.asarray(value, np.float64) for name, value in released.items()}

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    b, c, h, w = images.shape
    cut = images.reshape(b, c, h // patch, patch, w // patch, patch).transpose(0, 2, 4, 1, 3, 5)
    kernel = p["patch_embed.proj.weight"].reshape(len(p["patch_embed.proj.weight"]), -1)
    x = cut.reshape(b, -1, kernel.shape[1]) @ kernel.T + p["patch_embed.proj.bias"]
    x = np.concatenate([np.repeat(p["cls_token"], b, axis=0), x], axis=1) + p["pos_embed"]
    for layer in range(2):
        at = f"blocks.{layer}"
        q, k, v = (
            linear(norm(x, f"{at}.norm1"), f"{at}.attn.qkv")
            .reshape(b, x.shape[1], 3, heads, -1)
            .transpose(2, 0, 3, 1, 4)
        )
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + linear(mixed.transpose(0, 2, 1, 3).reshape(x.shape), f"{at}.attn.proj")
        hidden = linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")
        gelu = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2)))
        x = x + linear(gelu, f"{at}.mlp.fc2")
    return linear(norm(x, "norm")[:, 0], "head")


def test_vit_is_timms():
    config = ALL["vit"]
    model = models.create(config)
    leaves, structure = jax.tree.flatten(model.abstract_params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    params = jax.tree.unflatten(
        structure, [0.5 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )
    released = weights.export(params, "vit_timm")
    images = np.asarray(jax.random.normal(jax.random.key(1), (2, 1, 8, 8)))
    logits, _ = model.apply(params, jnp.asarray(images.transpose(0, 2, 3, 1)))
    expected = vit_oracle(released, images.astype(np.float64), heads=2, patch=4)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    loaded, back = weights.load(released, "vit_timm", heads=2)
    assert loaded == dataclasses.replace(config, dtype="auto")
    jax.tree.map(np.testing.assert_array_equal, params, back)


def test_tssa_is_the_gradient_of_the_statistics_it_is_derived_from():
    """−Π ⊙ W ⊙ 1/(1 + m) is −½ Σ_k n_k … log(1 + m)'s gradient in W with Π and its normaliser held."""
    layer = TSSA(dataclasses.replace(ALL["tost"], dtype="float32"), rngs=nnx.Rngs(params=0))
    layer.output = nnx.Param(jnp.eye(8).reshape(2, 4, 8))
    z = jax.random.normal(jax.random.key(1), (3, 5, 8))
    w = np.einsum("bnd,kdp->bknp", np.asarray(z, np.float64), np.asarray(layer.bases[...], np.float64))
    share = (w**2 / (w**2).sum(2, keepdims=True)).sum(-1)
    membership = np.exp(share) / np.exp(share).sum(1, keepdims=True)
    count = membership.sum(-1)
    moments = np.einsum("bkn,bknp->bkp", membership, w**2) / count[..., None]
    mixed = -w * membership[..., None] / (1 + moments[:, :, None])
    expected = mixed.transpose(0, 2, 1, 3).reshape(3, 5, 8)
    np.testing.assert_allclose(layer(z), expected, rtol=1e-4, atol=1e-6)

    def rate(w):
        moments = jnp.einsum("bkn,bknp->bkp", membership, w**2) / count[..., None]
        return 0.5 * jnp.sum(count[..., None] * jnp.log1p(moments))

    np.testing.assert_allclose(-jax.grad(rate)(jnp.asarray(w, jnp.float32)), mixed, rtol=1e-4, atol=1e-6)


def cost(config) -> float:
    """Flops of a forward pass as XLA counts them in the lowered program, unrolled because it counts a scan's body once."""
    model = models.create(dataclasses.replace(config, scan=False))
    images = jax.ShapeDtypeStruct((1, *config.image_shape), jnp.float32)
    lowered = jax.jit(lambda p, x: model.apply(p, x)[0]).lower(model.abstract_params, images)
    return lowered.cost_analysis()["flops"]


def test_the_cost_of_tost_is_linear_in_tokens():
    """At 256, 1,024 and 4,096 tokens; ViT's, of the same width, is not."""

    def costs(make):
        sides = (16, 32, 64)
        return [cost(make("tiny", image_size=side, patch_size=1, channels=1, depth=2)) for side in sides]

    linear, quadratic = costs(models.tost), costs(models.vit)
    tokens = [256, 1024, 4096]
    per_token = [
        (b - a) / (m - n) for a, b, n, m in zip(linear, linear[1:], tokens, tokens[1:], strict=False)
    ]
    assert per_token[1] == pytest.approx(per_token[0], rel=1e-3)
    assert linear[2] / linear[0] == pytest.approx(16, rel=0.05)
    assert quadratic[2] / quadratic[0] > 40


def test_linear_attention_costs_no_square_of_the_tokens():
    z, bases = jax.ShapeDtypeStruct((1, 1024, 32), jnp.float32), jax.ShapeDtypeStruct((4, 32, 8), jnp.float32)
    linear, quadratic = (
        matmul_flops(lambda z, u, s=softmax: objectives.mssa(z, u, softmax=s), z, bases)
        for softmax in (False, True)
    )
    assert linear == 2 * 1024 * 32 * (32 + 2 * 8 + 32)
    assert quadratic == 2 * 1024 * 32 * (32 + 2 * 1024 + 32)


@pytest.mark.parametrize("family", ALL)
def test_a_wide_image_is_a_wide_grid(family):
    config = dataclasses.replace(ALL[family], image_width=16)
    assert (config.grid, config.num_tokens) == ((2, 4), 8)
    model = models.create(config)
    logits = jax.eval_shape(model.apply, model.abstract_params, jnp.zeros((2, 8, 16, 1)))[0]
    assert logits.shape == (2, 3)
    # Other sizes are seen with interpolated positions, as long as they are cut into whole patches.
    logits = jax.eval_shape(model.apply, model.abstract_params, jnp.zeros((2, 4, 8, 1)))[0]
    assert logits.shape == (2, 3)
    with pytest.raises(InputError, match=r"found shape \(2, 15, 8, 1\); accepted: \[b, 8, 16, 1\], or other"):
        jax.eval_shape(model.apply, model.abstract_params, jnp.zeros((2, 15, 8, 1)))


def test_positions_are_interpolated_over_rows_and_columns():
    rows, columns = jnp.meshgrid(jnp.arange(4.0), jnp.arange(6.0), indexing="ij")
    table = jnp.stack([rows, columns, jnp.ones((4, 6))], axis=-1).reshape(24, 3)
    table = jnp.concatenate([jnp.full((1, 3), 7.0), table])
    assert models.resize_positions(table, (4, 6), (4, 6)) is table
    large = np.asarray(models.resize_positions(table, (4, 6), (8, 18)))
    np.testing.assert_array_equal(large[0], 7)  # The class token has no place in the grid.
    grid = large[1:].reshape(8, 18, 3)
    np.testing.assert_allclose(grid[..., 2], 1, rtol=1e-5)
    np.testing.assert_allclose(grid[..., 0], np.repeat(grid[:, :1, 0], 18, axis=1), atol=1e-5)
    np.testing.assert_allclose(grid[..., 1], np.repeat(grid[:1, :, 1], 8, axis=0), atol=1e-5)
    np.testing.assert_allclose(
        grid[3:5, 0, 0], [1.25, 1.75], atol=1e-5
    )  # A ramp stays one where it has neighbours.
    np.testing.assert_allclose(np.diff(grid[0, 6:12, 1]), 1 / 3, atol=1e-5)
    small = np.asarray(models.resize_positions(jnp.asarray(large), (8, 18), (4, 6)))
    assert small.shape == (25, 3)


@pytest.mark.parametrize("family", ALL)
def test_parameters_for_another_resolution(family):
    config = ALL[family]
    params = models.create(config).abstract_params
    larger = dataclasses.replace(config, image_size=16, image_width=12)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params)
    resized = models.at_resolution(params, config, larger)
    shapes = jax.tree.map(lambda leaf: leaf.shape, models.create(larger).abstract_params)
    assert jax.tree.map(lambda leaf: leaf.shape, resized) == shapes


@pytest.mark.parametrize("family", ALL)
def test_a_class_token_is_there_where_the_head_reads_it(family):
    assert models.ToSTConfig().pool == "mean"
    for pool, tokens in (("class", 5), ("mean", 4)):
        config = dataclasses.replace(ALL[family], pool=pool)
        params = models.create(config).abstract_params
        assert config.sequence_length == tokens == len(params["position_embedding"])
        assert ("class_token" in params) == (pool == "class")


def test_heads_must_divide_the_width():
    with pytest.raises(InputError, match=r"model.heads: found 3, which does not divide model.dim 8"):
        models.create(dataclasses.replace(ALL["vit"], heads=3))


def test_crate_alpha_of_a_published_size_starts_as_released():
    """MSSA's matrices as N(0, 0.02²), dictionaries as He's uniform; without `mssa_std` U(−1/√d, 1/√d), as in CRATE."""
    sizes = {"image_size": 32, "num_classes": 10, "depth": 1}
    block = models.create(models.crate_alpha("small", **sizes)).init(jax.random.key(0))["blocks"]["blocks"]
    for name in ("bases", "output"):
        values = block["mssa"][name]
        np.testing.assert_allclose([values.mean(), values.std()], [0, 0.02], atol=2e-4)
        assert abs(values).max() > 0.07
    np.testing.assert_allclose(abs(block["odl"]["dictionary"]).max(), (6 / 576) ** 0.5, rtol=1e-3)
    plain = models.create(models.crate_alpha("small", **sizes, mssa_std=None)).init(jax.random.key(0))
    assert abs(plain["blocks"]["blocks"]["mssa"]["bases"]).max() <= 576**-0.5
