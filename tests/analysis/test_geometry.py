"""Points from distances and back, alignments that are known, tests against chance."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from crate_jax.analysis import geometry


def cloud(n=12, d=3, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)) * [3, 2, 1]


def rotation(seed=1):
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def test_mds_finds_points_that_have_the_distances():
    distances = squareform(pdist(cloud()))
    points, stress = geometry.metric_mds(distances, fits=8)
    assert stress < 1e-3
    np.testing.assert_allclose(squareform(pdist(points)), distances, atol=2e-2)


def test_stress_of_distances_that_three_dimensions_do_not_hold():
    """All n points at the same distance: more than four have no place."""
    _, four = geometry.metric_mds(1 - np.eye(4), fits=4)
    _, ten = geometry.metric_mds(1 - np.eye(10), fits=4)
    assert four < 1e-3 < 0.1 < ten


def test_an_alignment_that_is_known():
    points = cloud()
    target = 2.5 * points @ rotation() + [1, -2, 3]
    found = geometry.align(points, target)
    assert np.isclose(found.r2, 1)
    np.testing.assert_allclose(found.points, target)
    assert geometry.align(points, target, mirrored=True).r2 < 0.95


def test_a_mirror_image_is_found_mirrored():
    points = cloud()
    target = points * [1, 1, -1] @ rotation()
    assert geometry.align(points, target).r2 < 0.95
    np.testing.assert_allclose(geometry.align(points, target, mirrored=True).points, target, atol=1e-12)


def test_no_other_rotation_does_better():
    points, target = cloud(seed=2), cloud(seed=3)
    best = geometry.align(points, target).r2
    x, y = points - points.mean(0), target - target.mean(0)
    for seed in range(50):
        moved = x @ rotation(seed)
        scale = (moved * y).sum() / (moved**2).sum()
        assert 1 - ((scale * moved - y) ** 2).sum() / (y**2).sum() <= best + 1e-12


def test_mantel_of_a_set_with_itself_is_the_smallest_p():
    distances = squareform(pdist(cloud(20)))
    same = geometry.mantel(distances, distances**2, permutations=99)
    assert np.isclose(same.value, 1)
    assert same.p == 0.01
    assert geometry.rank_correlation(distances, -distances) == pytest.approx(-1)


def test_type_one_errors_of_both_tests():
    """Independent clouds are found alike in one case of twenty."""
    p = {"mantel": [], "chirality": []}
    for seed in range(200):
        first, second = cloud(10, seed=2 * seed), cloud(10, seed=2 * seed + 1)
        distances = squareform(pdist(first)), squareform(pdist(second))
        p["mantel"].append(geometry.mantel(*distances, permutations=39, seed=seed).p)
        p["chirality"].append(geometry.chirality_test(first, second, permutations=39, seed=seed).p)
    for values in p.values():
        assert 0.01 <= np.mean(np.array(values) <= 0.05) <= 0.1
