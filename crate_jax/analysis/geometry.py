"""Points from distances, and how well two sets of distances or of points agree."""

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata
from sklearn.manifold import smacof


class PermutationTest(NamedTuple):
    """A statistic, the mean of its permutation null, and p = (1 + #{null ≥ statistic})/(permutations + 1)."""

    value: float
    null: float
    p: float


class Alignment(NamedTuple):
    """Points moved onto others, `[n, d]`, and R² = 1 - Σ |residual|²/Σ |target - mean|²."""

    points: np.ndarray
    r2: float


def metric_mds(
    distances: np.ndarray, *, dimensions: int = 3, fits: int = 20, seed: int = 0
) -> tuple[np.ndarray, float]:
    """Points whose Euclidean distances are nearest to the given ones: metric multidimensional scaling by SMACOF.

    Args:
      distances: `[n, n]`, symmetric, zeros on the diagonal.
      dimensions: of the points.
      fits: random starts; the best is kept.
      seed: of the starts.
    Returns:
      `[n, dimensions]`, and Kruskal's stress-1, (Σ (distance found - given)²/Σ given²)^½.

    de Leeuw 1977; the implementation is scikit-learn's.
    """
    points, _ = smacof(
        distances,
        n_components=dimensions,
        n_init=fits,
        max_iter=1000,
        eps=1e-9,
        random_state=seed,
        normalized_stress=False,
    )
    given = squareform(distances, checks=False)
    return points, float(np.sqrt(np.sum((pdist(points) - given) ** 2) / np.sum(given**2)))


def align(points: np.ndarray, target: np.ndarray, *, mirrored: bool = False) -> Alignment:
    """Move points onto others by the rotation, scale and shift with the least squared error.

    Args:
      points: `[n, d]`.
      target: `[n, d]`; row i is where row i of `points` belongs.
      mirrored: reflect the points first. Distances cannot tell a figure from its mirror image.

    Kabsch 1976, Umeyama 1991.
    """
    if mirrored:
        points = points * np.where(np.arange(points.shape[1]) == 0, -1, 1)
    x, y = points - points.mean(0), target - target.mean(0)
    left, values, right = np.linalg.svd(x.T @ y)
    signs = np.ones(len(values))
    signs[-1] = np.sign(np.linalg.det(left) * np.linalg.det(right))
    scale = (values * signs).sum() / (x**2).sum()
    moved = scale * x @ (left * signs) @ right
    return Alignment(moved + target.mean(0), float(1 - ((moved - y) ** 2).sum() / (y**2).sum()))


def mantel(first: np.ndarray, second: np.ndarray, *, permutations: int, seed: int = 0) -> PermutationTest:
    """Spearman's correlation of two sets of distances between the same points, and whether chance explains it.

    The null renames the points of one set: the entries of a distance matrix are not independent, its points are.

    Args:
      first: `[n, n]`, symmetric; the diagonal is not looked at.
      second: `[n, n]` of the same points.
      permutations: random renamings.
      seed: of these.

    Mantel 1967; one-sided, for distances that grow together.
    """
    n = len(first)
    upper = np.triu_indices(n, 1)
    x, y = _unit_ranks(first), _unit_ranks(second)
    square = squareform(y)
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(n) for _ in range(permutations))
    return _test(x @ y, np.array([x @ square[np.ix_(order, order)][upper] for order in orders]))


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation of two sets of distances, `[n, n]`, over the pairs of points."""
    return float(_unit_ranks(first) @ _unit_ranks(second))


def _unit_ranks(matrix: np.ndarray) -> np.ndarray:
    """The ranks of the entries above the diagonal, centred, at unit length."""
    ranks = rankdata(matrix[np.triu_indices(len(matrix), 1)])
    return (ranks - ranks.mean()) / np.linalg.norm(ranks - ranks.mean())


def chirality_test(
    points: np.ndarray, target: np.ndarray, *, permutations: int, seed: int = 0
) -> PermutationTest:
    """R² of the better of the two handednesses, against points that are renamed and then aligned, again in both.

    Args:
      points: `[n, d]`.
      target: `[n, d]`.
      permutations: random renamings.
      seed: of these.
    """

    def best(order):
        return max(align(points[order], target, mirrored=mirrored).r2 for mirrored in (False, True))

    rng = np.random.default_rng(seed)
    null = [best(rng.permutation(len(points))) for _ in range(permutations)]
    return _test(best(slice(None)), np.array(null))


def _test(value: float, null: np.ndarray) -> PermutationTest:
    # A renaming that changes nothing must not fall below the statistic by rounding.
    reached = np.sum(null >= value - 1e-12)
    return PermutationTest(float(value), float(null.mean()), float((1 + reached) / (len(null) + 1)))
