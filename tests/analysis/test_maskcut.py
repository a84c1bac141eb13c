"""MaskCut against the released masks, a dense eigen-decomposition, and scenes whose objects are known."""

import numpy as np
import pytest
from conftest import ROOT
from scipy.linalg import eigh

from crate_jax import InputError
from crate_jax.analysis import maskcut
from crate_jax.analysis.maskcut import iou

OFFICIAL = np.load(ROOT / "tests" / "fixtures" / "maskcut_official.npz")
SCENES = [("14x20", "low"), ("14x20", "high"), ("20x20big", "mid")]


def scene(grid, *, seed, noise, dim=48, shapes=3):
    """Features of discs on a ground, and the discs' masks; no disc touches another or a corner."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: grid[0], : grid[1]]
    labels = np.zeros(grid, int)
    for number in range(shapes):
        centre = (0.5 * grid[0], (number + 0.5) / shapes * grid[1])
        radius = rng.uniform(0.25, 0.42) * min(grid[0], grid[1] / shapes)
        labels[(rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2] = number + 1
    means = np.linalg.qr(rng.standard_normal((dim, shapes + 1)))[0].T
    features = means[labels.ravel()] + noise * rng.standard_normal((labels.size, dim)) / np.sqrt(dim)
    return features.astype(np.float32), [labels == number for number in range(1, shapes + 1)]


@pytest.mark.parametrize("tau", ["0.15", "0.2"])
@pytest.mark.parametrize(("grid", "level"), SCENES)
def test_masks_and_eigenvectors_are_the_released_ones(grid, level, tau, monkeypatch):
    """With the sign that LAPACK gave the released eigenvectors, which decides how its rule for corners turns out."""
    key = f"{grid}/{level}/tau{tau}/maskcut"
    masks, vectors, values = (OFFICIAL[f"{key}/{name}"] for name in ("masks", "eigvecs", "eigvals5"))
    released = iter(vectors.astype(np.float64))

    def as_released(vector):
        expected = next(released).ravel()
        vector = vector * np.sign(vector @ expected) / np.linalg.norm(vector)
        expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(vector, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
        return vector

    monkeypatch.setattr(maskcut, "_oriented", as_released)
    cuts = maskcut.maskcut(OFFICIAL[f"{grid}/{level}/feats"], masks.shape[1:], threshold=float(tau))
    assert len(cuts) >= 2
    np.testing.assert_allclose([cut.eigenvalue for cut in cuts], values[: len(cuts), 1], rtol=0, atol=1e-6)
    for number, mask in enumerate(masks):
        found = cuts[number].mask if number < len(cuts) else np.zeros_like(mask)
        assert (iou(found, mask) >= 0.95) if mask.any() else not found.any()


@pytest.mark.parametrize("noise", [0.3, 0.8, 1.2])
@pytest.mark.parametrize("seed", range(4))
def test_objects_of_known_scenes_are_found(seed, noise):
    grid = (18, 36)
    features, objects = scene(grid, seed=seed, noise=noise)
    cuts = [cut for cut in maskcut.maskcut(features, grid) if cut.verdict == maskcut.KEPT]
    assert len(cuts) == 3
    for mask in objects:
        best = max(cuts, key=lambda cut: iou(cut.mask, mask))
        assert iou(best.mask, mask) >= 0.9
        (rows, columns) = np.nonzero(best.mask)
        assert best.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert not np.any(sum(cut.mask.astype(int) for cut in cuts) > 1)


def test_the_eigenvector_is_that_of_a_dense_decomposition():
    features, _ = scene((10, 14), seed=5, noise=1.5)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    affinity = np.where(unit @ unit.T > 0.15, 1.0, 1e-5)
    degrees = np.diag(affinity.sum(axis=1))
    values, vectors = eigh(degrees - affinity, degrees, subset_by_index=[1, 2])
    cut = maskcut.maskcut(features, (10, 14), objects=1)[0]
    found = cut.eigenvector.ravel()
    cosine = found @ vectors[:, 0] / np.linalg.norm(found) / np.linalg.norm(vectors[:, 0])
    assert abs(cosine) == pytest.approx(1, abs=1e-8)
    assert cut.eigenvalue == pytest.approx(values[0], abs=1e-7)


def test_a_matrix_that_is_not_kept_gives_the_same_cuts(monkeypatch):
    features, _ = scene((10, 20), seed=1, noise=0.8)
    kept = maskcut.maskcut(features, (10, 20))
    monkeypatch.setattr(maskcut, "MAX_KEPT", 0)
    monkeypatch.setattr(maskcut, "BLOCK", 90)
    for one, other in zip(kept, maskcut.maskcut(features, (10, 20)), strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)


def test_the_scale_of_features_does_not_matter_and_runs_repeat():
    features, _ = scene((18, 36), seed=2, noise=0.8)
    scales = np.random.default_rng(0).uniform(0.1, 10, (len(features), 1))
    cuts = [maskcut.maskcut(x, (18, 36)) for x in (features, features, features * scales)]
    np.testing.assert_array_equal(cuts[0][0].eigenvector, cuts[1][0].eigenvector)
    for one, other in zip(cuts[0], cuts[2], strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)


@pytest.mark.parametrize("features", [np.ones((12, 4)), np.eye(12), np.zeros((12, 4))])
def test_where_all_tokens_are_alike_or_apart_there_is_nothing_to_cut(features):
    assert maskcut.maskcut(features, (3, 4)) == []


def test_the_smallest_image_that_can_be_cut():
    cuts = maskcut.maskcut(np.array([[1.0, 0], [1, 0.1], [0, 1]]), (1, 3))
    assert cuts[0].mask.sum() in (1, 2)


def test_iou_and_boxes():
    a, b = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    assert iou(a, b) == 0 and maskcut.bounding_box(a) is None
    a[1:3, 1:4], b[2:4, 1:4] = True, True
    assert iou(a, b) == 3 / 9
    assert maskcut.bounding_box(a) == (1, 1, 4, 3)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (np.ones((11, 4)), {}, r"found shape \(11, 4\) for a grid of 3×4; accepted: a row per token"),
        (np.full((12, 4), np.nan), {}, "not finite"),
        (
            np.ones((12, 4)),
            {"threshold": 1.0},
            "threshold of MaskCut: found 1.0; accepted: from 0 to less than 1",
        ),
        (np.ones((12, 4)), {"objects": 0}, "objects of MaskCut: found 0; accepted: 1 or more"),
    ],
)
def test_bad_input_is_one_line(features, options, message):
    with pytest.raises(InputError, match=message):
        maskcut.maskcut(features, (3, 4), **options)
