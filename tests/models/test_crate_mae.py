"""CRATE-MAE: published sizes, parity with the released implementation, positions, masks."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import InputError, models, weights
from crate_jax.models.crate_mae import random_mask, sines_and_cosines
from crate_jax.models.layers import patchify, unpatchify
from crate_jax.tasks.reconstruct import patch_errors

OFFICIAL = Path(__file__).parents[1] / "fixtures" / "crate_mae_official.npz"


@pytest.fixture(scope="module")
def official():
    with np.load(OFFICIAL) as file:
        arrays = {name: file[name] for name in file.files}
    released = {n.removeprefix("param/"): a for n, a in arrays.items() if n.startswith("param/")}
    config, params = weights.load(released, "crate_mae", heads=4)
    return arrays, released, models.create(config), params


@pytest.mark.parametrize(
    ("size", "count", "published"),
    [
        ("tiny", 11_555_328, None),
        ("small", 25_405_824, "25.4M"),
        ("base", 44_638_464, "44.6M"),
        ("large", 154_274_560, None),
    ],
)
def test_parameter_counts_are_the_published_ones(size, count, published):
    found = models.create(models.crate_mae(size)).num_params
    assert found == count
    assert published is None or f"{found / 1e6:.1f}M" == published


def test_mask_prediction_and_loss_match_the_released_model(official):
    arrays, _, model, params = official
    images = jnp.asarray(arrays["image_nchw"].transpose(0, 2, 3, 1))

    @jax.jit
    def run(params, images, noise):
        prediction, _ = model.apply(params, images, noise=noise)
        mask = random_mask(noise, model.config.mask_ratio)
        return mask, prediction, patch_errors(prediction, patchify(images, 8), mask).mean()

    mask, prediction, loss = run(params, images, arrays["noise"])
    np.testing.assert_array_equal(mask, arrays["mask"])
    scale = np.abs(arrays["pred"]).max()
    np.testing.assert_allclose(prediction, arrays["pred"], rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(loss, arrays["loss"], rtol=1e-5)


def test_released_weights_go_there_and_back(official):
    _, released, model, params = official
    assert (model.config.image_size, model.config.patch_size, model.config.depth) == (32, 8, 2)
    back = weights.export(params, "crate_mae")
    assert back.keys() == released.keys()
    for name, value in released.items():
        np.testing.assert_array_equal(back[name], value)


def test_initial_positions_are_the_released_ones():
    # The released table at width 8 and a grid of 2: sin and cos of the column, then of the row, at 1 and 10⁻².
    table = sines_and_cosines(8, 2)
    np.testing.assert_array_equal(table[0], np.zeros(8))
    for place, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        angles = [np.array([x, x / 100]) for x in (column, row)]
        by_hand = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)])
        np.testing.assert_allclose(table[place + 1], by_hand, rtol=1e-6, atol=1e-7)


def test_hidden_patches_are_not_seen_and_positions_do_not_move(official):
    arrays, _, model, params = official
    images = jnp.asarray(arrays["image_nchw"].transpose(0, 2, 3, 1))
    hidden = arrays["mask"][..., None] > 0
    changed = unpatchify(jnp.where(hidden, 7.0, patchify(images, 8)), 8, 3)
    predict = jax.jit(lambda images: model.apply(params, images, noise=arrays["noise"])[0])
    np.testing.assert_array_equal(predict(images), predict(changed))
    grads = jax.grad(lambda params: model.apply(params, images)[0].var())(params)
    unmoved = {
        name for name, grad in grads.items() if not any(np.any(leaf) for leaf in jax.tree.leaves(grad))
    }
    assert unmoved == {
        "decoder_position_embedding",
        "position_embedding",
        "decoder_projection",
        "mask_token",
    }


def test_masks_hide_their_share():
    noise = jax.random.uniform(jax.random.key(0), (5, 16))
    np.testing.assert_array_equal(random_mask(noise, 0.75).sum(axis=1), np.full(5, 12))
    np.testing.assert_array_equal(random_mask(noise, 0.0), np.zeros((5, 16)))
    np.testing.assert_array_equal(random_mask(jnp.array([[0.3, 0.1, 0.2, 0.4]]), 0.5), [[1, 0, 0, 1]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratio": 1.0}, "model.mask_ratio: found 1.0, which leaves 0 of 16"),
        ({"mask_ratio": -0.5}, "model.mask_ratio: found -0.5"),
        ({"dim": 30}, "model.dim: found 30; accepted: multiples of 4"),
        ({"image_width": 16}, "model.image_width: found 16; accepted for crate_mae: none"),
        ({"pool": "mean"}, "model.pool: found 'mean'; accepted for crate_mae: 'class'"),
        ({"update": "derived"}, "model.update: found 'derived'; accepted for crate_mae: 'skip'"),
        ({"learn_steps": True}, "model.learn_steps: found True; accepted for crate_mae: False"),
        ({"patch_size": 3}, "model.patch_size: found 3, which does not divide"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(InputError, match=message):
        models.create(models.crate_mae("tiny", **{"image_size": 8, "patch_size": 2, **changes}))
    with pytest.raises(InputError, match="size of CRATE-MAE: found 'huge'"):
        models.crate_mae("huge")
