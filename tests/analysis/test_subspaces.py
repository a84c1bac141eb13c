"""The geometry of subspaces and atoms on cases that are known, against SciPy, and readings of layers against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import subspace_angles

from crate_jax import InputError, models
from crate_jax.analysis import subspaces as geometry

RNG = np.random.default_rng(0)


def orthogonal(d):
    return np.linalg.qr(RNG.standard_normal((d, d)))[0]


def test_angles_are_those_of_scipy():
    bases = RNG.standard_normal((3, 10, 4))
    found = geometry.subspaces(bases)
    for i in range(3):
        for j in range(3):
            expected = np.cos(subspace_angles(bases[i], bases[j]))[::-1]
            np.testing.assert_allclose(found.cosines[i, j], expected, atol=1e-7)
    np.testing.assert_allclose(found.norms, np.sqrt(np.square(bases).sum((1, 2))))


def test_equal_and_orthogonal_subspaces():
    axes = orthogonal(12)
    turned = 3 * axes[:, :4] @ orthogonal(4)
    bases = np.stack([axes[:, :4], turned, axes[:, 4:8]])
    found = geometry.subspaces(bases)
    np.testing.assert_allclose(found.overlap, [[1, 1, 0], [1, 1, 0], [0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(found.deviation, 0, atol=1e-7)
    together = geometry.subspaces(2 * np.stack([axes[:, :4], axes[:, 4:8], axes[:, 8:]]))
    assert together.joint_deviation == pytest.approx(0, abs=1e-7) and found.joint_deviation > 0.5


def test_random_subspaces_overlap_by_p_over_d():
    found = geometry.subspaces(RNG.standard_normal((12, 60, 6)))
    others = found.overlap[~np.eye(12, dtype=bool)]
    assert others.mean() == pytest.approx(6 / 60, rel=0.1)


def test_the_deviation_of_more_columns_than_dimensions():
    axes = orthogonal(6)
    bases = np.stack([axes[:, :3], axes[:, 3:], axes[:, :3], axes[:, 3:]])
    assert geometry.subspaces(bases).joint_deviation == pytest.approx(np.sqrt(1 - 6 / 12))


def test_dictionaries():
    found = geometry.dictionary(5 * orthogonal(8))
    assert found.coherence == pytest.approx(0, abs=1e-12) and found.least_coherence == 0
    assert found.deviation == pytest.approx(0, abs=1e-7)
    np.testing.assert_allclose(found.norms, 5)
    # The corners of a regular simplex, seen in the plane that they span, attain Welch's bound.
    corners = np.eye(5) - 1 / 5
    simplex = np.linalg.svd(corners)[0][:, :4].T @ corners
    found = geometry.dictionary(simplex)
    assert found.coherence == pytest.approx(found.least_coherence) == pytest.approx(1 / 4)
    atoms = RNG.standard_normal((200, 300))
    assert geometry.dictionary(atoms).mean_cosine == pytest.approx(np.sqrt(2 / (np.pi * 200)), rel=0.02)
    repeated = np.concatenate([atoms, -2 * atoms[:, :1]], axis=1)
    assert geometry.dictionary(repeated).coherence == pytest.approx(1)


def test_energy_and_errors_are_those_of_numpy():
    def some(*shape):
        return RNG.standard_normal(shape).astype(np.float32)

    seen = {
        "normed": some(2, 5, 8), "bases": some(3, 8, 2), "dictionary": some(8, 12), "ista_in": some(2, 5, 8),
        "ista_out": some(2, 5, 12), "mssa_in": some(2, 5, 8), "mssa_out": some(2, 5, 8), "mssa_undone": some(2, 5, 8),
    }  # fmt: skip
    found = geometry.layer_reader({name: jnp.asarray(value) for name, value in seen.items()})
    wide = {name: value.astype(np.float64) for name, value in seen.items()}
    for example in range(2):
        x = wide["normed"][example]
        for head in range(3):
            projector = wide["bases"][head] @ np.linalg.pinv(wide["bases"][head])
            energy = np.sum((x @ projector) ** 2) / np.sum(x**2)
            assert found["energy"][example, head] == pytest.approx(energy, rel=1e-5)
        x, back = wide["ista_in"][example], wide["ista_out"][example] @ wide["dictionary"].T
        scale = np.linalg.lstsq(back.reshape(-1, 1), x.ravel(), rcond=None)[0]
        error = np.linalg.norm(x - scale * back) / np.linalg.norm(x)
        assert found["sparsification_error"][example] == pytest.approx(error, rel=1e-5)
        z, half, undone = (wide[name][example] for name in ("mssa_in", "mssa_out", "mssa_undone"))
        assert found["compression_error"][example] == pytest.approx(
            np.linalg.norm(z - undone) / np.linalg.norm(z), rel=1e-5
        )
        assert found["compression_size"][example] == pytest.approx(
            np.linalg.norm(z - half) / np.linalg.norm(z), rel=1e-5
        )
    atoms = orthogonal(8).astype(np.float32)
    exact = {
        **seen,
        "dictionary": atoms,
        "ista_out": 3 * seen["ista_in"] @ atoms,
        "mssa_undone": seen["mssa_in"],
    }
    found = geometry.layer_reader({name: jnp.asarray(value) for name, value in exact.items()})
    np.testing.assert_allclose(found["sparsification_error"], 0, atol=1e-5)
    np.testing.assert_allclose(found["compression_error"], 0)


@pytest.mark.parametrize("update", ["skip", "negative", "derived"])
def test_the_step_that_is_taken_back_solves_the_update(update):
    from crate_jax.models.crate import UNDONE, UPDATES

    z, moved = RNG.standard_normal((2, 4, 3))
    half = UPDATES[update](z, moved, 0.7, 0.4)
    np.testing.assert_allclose(UNDONE[update](half, moved, 0.7, 0.4), z)


@pytest.mark.parametrize(
    ("function", "value", "message"),
    [
        (
            geometry.subspaces,
            np.ones((3, 4)),
            r"bases: found shape \(3, 4\); accepted: finite numbers \[k, d, p\]",
        ),
        (geometry.subspaces, np.full((1, 4, 2), np.nan), "bases: .*finite"),
        (geometry.dictionary, np.ones((4, 1)), r"dictionary: found shape \(4, 1\); accepted: .* m ≥ 2"),
    ],
)
def test_bad_input_is_one_line(function, value, message):
    with pytest.raises(InputError, match=message):
        function(value)


def test_a_black_box_has_neither():
    config = models.ViTConfig(depth=1, image_size=8, patch_size=4, num_classes=3, dim=8, heads=2)
    with pytest.raises(
        InputError, match="subspaces and atoms of vit: found a model without them; accepted: crate,"
    ):
        geometry.layer_parameters(models.create(config), {}, jnp.zeros((1, 8, 8, 3)))


def test_parameters_of_any_family():
    sizes = {"depth": 2, "dim": 16, "heads": 2}
    config = models.CRATEAlphaConfig(image_size=8, patch_size=4, num_classes=3, overcomplete=3, **sizes)
    model = models.create(config)
    inputs = jnp.zeros((1, 8, 8, 3))
    found = jax.eval_shape(
        lambda params: geometry.layer_parameters(model, params, inputs), model.abstract_params
    )
    assert found["bases"].shape == (2, 2, 16, 8) and found["dictionary"].shape == (2, 16, 48)
