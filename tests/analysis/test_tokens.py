"""Features of tokens, their joint principal components, outlying norms, and pictures of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import InputError
from crate_jax.analysis import overlays
from crate_jax.analysis.tokens import joint_pca, norm_outliers, token_reader

RNG = np.random.default_rng(0)


def test_keys_of_all_heads_stand_side_by_side():
    seen = {"out": jnp.ones((2, 5, 16)), "subspace_in": jnp.asarray(RNG.standard_normal((2, 3, 5, 4)))}
    np.testing.assert_array_equal(token_reader()(seen), seen["out"])
    keys = token_reader("keys")(seen)
    np.testing.assert_array_equal(keys[:, :, 4:8], seen["subspace_in"][:, 1])
    assert keys.shape == (2, 5, 12)
    with pytest.raises(InputError, match="found 'keys', which this model does not have; accepted: tokens"):
        token_reader("keys")({"out": seen["out"]})


def test_components_are_those_of_all_tokens_together():
    """Rank-three tokens: colours are affine in the coordinates, whichever image a token is of."""
    directions = np.linalg.qr(RNG.standard_normal((20, 3)))[0].T
    coordinates = RNG.exponential(1, (4, 9, 3)) * (5, 2, 1)
    found = joint_pca(coordinates @ directions + 3)
    assert found.foreground.all() and found.explained.sum() == pytest.approx(1)
    assert (np.diff(found.explained) < 0).all()
    flat, colours = coordinates.reshape(-1, 3), found.colours.reshape(-1, 3)
    inside = ((colours > 0) & (colours < 1)).all(axis=1)
    design = np.column_stack([flat, np.ones(len(flat))])[inside]
    _, residual, _, _ = np.linalg.lstsq(design, colours[inside], rcond=None)
    assert inside.sum() > 20 and residual.max() < 1e-20


def test_the_foreground_is_the_smaller_side_and_the_rest_is_black():
    truth = np.zeros((3, 16), bool)
    truth[:, 5:9] = True
    features = RNG.standard_normal((3, 16, 12)) + 20 * truth[..., None]
    found = joint_pca(features, foreground=True)
    np.testing.assert_array_equal(found.foreground, truth)
    assert not found.colours[~truth].any() and found.colours[truth].any(axis=1).mean() > 0.9
    np.testing.assert_allclose(joint_pca(features, foreground=truth).colours, found.colours)


def test_fewer_dimensions_than_colours():
    assert joint_pca(RNG.standard_normal((1, 6, 2))).colours[..., 2].max() == 0


@pytest.mark.parametrize(
    ("features", "foreground", "message"),
    [
        (np.ones((4, 3)), False, r"found shape \(4, 3\); accepted: finite numbers \[m, n, d\]"),
        (np.full((1, 4, 3), np.inf), False, "finite"),
        (np.ones((1, 4, 3)), np.ones((1, 5)), r"foreground: found shape \(1, 5\); accepted: \(1, 4\)"),
        (np.ones((1, 4, 3)), np.zeros((1, 4)), "foreground: found 0 tokens; accepted: three or more"),
    ],
)
def test_bad_input_of_the_components_is_one_line(features, foreground, message):
    with pytest.raises(InputError, match=message):
        joint_pca(features, foreground=foreground)


def test_an_unknown_kind_of_features():
    with pytest.raises(InputError, match="kind of token features: found 'value'"):
        token_reader("value")


def test_outlying_norms():
    norms = RNG.normal(10, 0.5, (5, 40))
    assert not norm_outliers(norms).outlying.any()
    norms[2, 7] = norms[4, 0] = 60
    found = norm_outliers(norms)
    assert np.argwhere(found.outlying).tolist() == [[2, 7], [4, 0]]
    assert found.largest == pytest.approx(60 / np.median(norms)) and 11 < found.threshold < 14
    assert not norm_outliers(np.full((3, 4), 2.0)).outlying.any()


def test_pictures_have_the_size_of_the_image():
    image = RNG.integers(0, 256, (12, 18, 1))
    values = np.arange(6.0).reshape(2, 3)
    warm = overlays.heat(image, values, strength=1)
    assert warm.shape == (12, 18, 3) and warm[0, 0, 2] > warm[0, 0, 0] and warm[-1, -1, 2] < warm[-1, -1, 0]
    assert overlays.heat(image, np.ones((2, 3))).shape == (12, 18, 3)
    mask = values > 3
    drawn = overlays.outlined(image, [mask, ~mask][:1])
    inside = np.kron(mask, np.ones((6, 6))) > 0
    np.testing.assert_array_equal(drawn[~inside], np.broadcast_to(image, (12, 18, 3))[~inside])
    assert (drawn[inside] != np.broadcast_to(image, (12, 18, 3))[inside]).any(axis=1).all()
    assert overlays.painted(np.ones((2, 3, 3)), (12, 18)).min() == 255
    assert overlays.enlarged(image, 30).shape == (36, 54, 1)
    with pytest.raises(InputError, match=r"image to draw over: found shape \(3, 3\)"):
        overlays.heat(np.zeros((3, 3)), values)
