"""MaskCut: the objects of an image, one after the other, from its token features alone, without labels or training.

Tokens are the nodes of a graph; two are joined where their features are alike,
    A_ij = 1 if cos(f_i, f_j) > τ, else 10⁻⁵,
and cut in two where the normalised cut is smallest: at the mean of the eigenvector of the second smallest λ of
(D − A) x = λ D x, D_ii = Σ_j A_ij. The side that holds the peak of |x| is the object, unless it holds three corners of the
image; the connected part at the peak is its mask. Then these tokens are taken out and the next object is cut.

Source: Wang et al., CutLER (arXiv 2301.11320), section 3.2; TokenCut (arXiv 2202.11539). Here the eigenvector comes from
Lanczos iterations with products A x, so no n × n matrix is factorised. There are two more deviations from the released code.
The sign of the eigenvector, on which its rule for corners depends and which it leaves to LAPACK, is that of the peak. The
search ends with the first cut that is refused, which the released code makes again. Masks are not refined by a conditional
random field.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.sparse.linalg import LinearOperator, eigsh

from crate_jax import InputError

# Affinity of two tokens that are not alike: it keeps the graph connected.
APART = 1e-5
# A later object is refused if it overlaps the one before by more than this (intersection over union) or covers no more of
# the image than this.
MAX_OVERLAP, MIN_SHARE = 0.5, 0.01
# Entries of the n × n matrix of what is alike that are kept (as float32, 1 GiB); of larger images they are found again, a
# block of rows at a time, for every product.
MAX_KEPT, BLOCK = 2**28, 1024

KEPT, OVERLAPS, SMALL, HIDDEN = "kept", "overlaps the one before", "too small", "covered by those before"


class Cut(NamedTuple):
    """One cut of an image.

    Attributes:
      mask: bool `[h, w]`, the tokens of the object that no earlier one has; none where it was refused.
      box: (left, top, right, bottom) of the mask in tokens, the last two exclusive; None where the mask is empty.
      verdict: KEPT, or why the cut was refused.
      eigenvector: `[h, w]`, the object's side positive.
      eigenvalue: λ; the smaller, the clearer the cut.
    """

    mask: np.ndarray
    box: tuple[int, int, int, int] | None
    verdict: str
    eigenvector: np.ndarray
    eigenvalue: float


def maskcut(
    features: np.ndarray, grid: tuple[int, int], *, threshold: float = 0.15, objects: int = 3
) -> list[Cut]:
    """Masks and boxes of the objects of one image.

    Args:
      features: `[h·w, d]`, one row per token, row by row of the grid.
      grid: (h, w).
      threshold: τ, in [0, 1).
      objects: cuts at most.
    Returns:
      the cuts in the order in which they were made, refused ones too. Empty where all tokens are alike or none are: there is
      nothing to cut then.
    Raises:
      InputError: features that do not fit the grid or are not finite, fewer than three tokens, settings out of range.
    """
    features = _checked(features, grid, threshold, objects)
    alike = _Alike(features, threshold)
    free = np.ones(len(features), bool)
    before, covered = None, np.zeros(grid, bool)
    cuts: list[Cut] = []
    for _ in range(objects):
        found = _second_eigenvector(alike, free)
        if found is None:
            break
        part, vector = _object(_oriented(found[0]).reshape(grid))
        verdict = _verdict(part, before, covered)
        mask = part & ~covered if verdict == KEPT else np.zeros(grid, bool)
        cuts.append(Cut(mask, bounding_box(mask), verdict, vector, found[1]))
        if verdict != KEPT:
            break
        before, covered = part, covered | mask
        free &= ~part.ravel()
    return cuts


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of a mask `[h, w]`, the last two exclusive; None if it is empty."""
    found = ndimage.find_objects(mask.astype(int))
    if not found:
        return None
    rows, columns = found[0]
    return columns.start, rows.start, columns.stop, rows.stop


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks of one shape; 0 where both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


class _Alike:
    """Which tokens are alike, B_ij = cos(f_i, f_j) > τ, as an operator."""

    def __init__(self, features: np.ndarray, threshold: float):
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        self.unit = features / np.maximum(norms, np.finfo(np.float32).tiny)
        self.threshold = threshold
        self.kept = list(self._compute()) if len(features) ** 2 <= MAX_KEPT else None

    def _compute(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.unit), BLOCK):
            yield (self.unit[start : start + BLOCK] @ self.unit.T > self.threshold).astype(np.float32)

    def __matmul__(self, x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float32)
        return np.concatenate([block @ x for block in self.kept or self._compute()]).astype(np.float64)


def _second_eigenvector(alike: _Alike, free: np.ndarray) -> tuple[np.ndarray, float] | None:
    """x and λ, where tokens that are not `free` are like no other; None where all free tokens are alike, or all apart.

    With S = D^-½ A D^-½ the wanted x is D^-½ y, y the eigenvector of the second largest eigenvalue 1 − λ of S; the largest
    is 1, of D^½ 1, which is subtracted.
    """
    n = len(free)

    def affinity(x):
        return APART * x.sum() + (1 - APART) * free * (alike @ (free * x))

    degrees = affinity(np.ones(n))
    joined = np.rint((degrees[free] - APART * n) / (1 - APART))
    if not len(joined) or (joined == n).all() or (joined <= 1).all():
        return None
    root = np.sqrt(degrees)
    first = root / np.linalg.norm(root)

    def product(y):
        y = y.ravel()
        return affinity(y / root) / root - first * (first @ y)

    start = np.random.Generator(np.random.Philox(key=0)).standard_normal(n)
    operator = LinearOperator((n, n), matvec=product, dtype=np.float64)
    # Few Lanczos vectors: the gap is usually wide, and some 15 products are enough.
    values, vectors = eigsh(operator, k=1, which="LA", v0=start, ncv=min(n, 12), tol=1e-7)
    return vectors[:, 0] / root, float(1 - values[0])


def _oriented(vector: np.ndarray) -> np.ndarray:
    """An eigenvector with the sign that makes its largest entry positive."""
    return vector if vector[np.argmax(np.abs(vector))] > 0 else -vector


def _object(vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mask of the object of an eigenvector `[h, w]`, and the eigenvector with the object's side positive."""
    side = vector > vector.mean()
    peak = np.argmax(np.abs(vector))
    if side[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 3 or not side.flat[peak]:
        side, vector = ~side, -vector
    labels, _ = ndimage.label(side)  # Neighbours are those above, below, left and right.
    return labels == labels.flat[np.argmax(vector)], vector


def _verdict(part: np.ndarray, before: np.ndarray | None, covered: np.ndarray) -> str:
    if before is None:
        return KEPT
    if iou(part, before) > MAX_OVERLAP:
        return OVERLAPS
    if part.mean() <= MIN_SHARE:
        return SMALL
    return KEPT if (part & ~covered).any() else HIDDEN


def _checked(features: np.ndarray, grid: tuple[int, int], threshold: float, objects: int) -> np.ndarray:
    features = np.asarray(features, np.float32)
    tokens = grid[0] * grid[1]
    if features.ndim != 2 or len(features) != tokens or tokens < 3:
        raise InputError(
            f"features of MaskCut: found shape {features.shape} for a grid of {grid[0]}×{grid[1]}; accepted: a row per "
            "token, three tokens or more"
        )
    if not np.isfinite(features).all():
        raise InputError("features of MaskCut: found values that are not finite; accepted: finite numbers")
    if not 0 <= threshold < 1:
        raise InputError(f"threshold of MaskCut: found {threshold}; accepted: from 0 to less than 1")
    if objects < 1:
        raise InputError(f"objects of MaskCut: found {objects}; accepted: 1 or more")
    return features
