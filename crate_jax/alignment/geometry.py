"""Measures of shape: Procrustes, and representational similarity analysis (RSA)."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from crate_jax import InputError
from crate_jax.alignment import arguments
from crate_jax.alignment.kernels import LARGEST, kernel_block, norm_of, rows_of
from crate_jax.alignment.measure import Measure, inner_products, reorder_both, reorder_rows
from crate_jax.alignment.neighbors import unit_rows

SHAPE_DISTANCES = ("normalised", "size_and_shape", "angular")


def procrustes(a, b, *, form):
    """How well one model's features fit the other's after the best rotation.

    With centred X and Y, and ‖XᵀY‖_* the sum of singular values (the best fit over orthogonal maps, the narrower features
    padded with zeros):

    Args:
      a, b: features of the same n samples, `[n, d_a]` and `[n, d_b]`.
      form: "paper": ‖XᵀY‖_* / (‖X‖ ‖Y‖), the cosine of the angular shape distance; symmetric, 0 to 1.
        "aristotelian": 1 − min_R ‖XR − Y‖ / ‖Y‖ without any scaling: not symmetric, and negative where X is much larger.
        The distances of ReSi and netrep are `shape_distance`.
    Returns:
      float32 scalar.
    Raises:
      InputError: unequal numbers of rows, fewer than 2, NaN, constant features, a form that is not accepted.

    Source: Williams et al. (arXiv 2110.14739), Section 2; Ding et al. (arXiv 2108.01661).
    """
    return procrustes_measure(form)(a, b)


def shape_distance(a, b, kind="normalised", *, center=True):
    """Distance that is left between two models' features after the best rotation; 0 for the same shape.

    Args:
      a, b: as for `procrustes`.
      kind: "size_and_shape": min_R ‖XR − Y‖ (ReSi `ProcrustesSizeAndShapeDistance`; netrep, euclidean).
        "normalised": the same for X/‖X‖ and Y/‖Y‖ (ReSi `OrthogonalProcrustesCenteredAndNormalized`; the square root of Ding
        et al.'s distance). "angular": arccos ‖XᵀY‖_* / (‖X‖ ‖Y‖) (ReSi `OrthogonalAngularShapeMetricCentered`; netrep,
        angular).
      center: take the features' means off first.
    Returns:
      float32 scalar ≥ 0; radians for "angular".
    Raises:
      InputError: as `procrustes`.
    """
    a, b = arguments.pair(a, b)
    arguments.one_of("kind", kind, SHAPE_DISTANCES)
    return _shape_distance(a, b, kind, center)


@functools.partial(jax.jit, static_argnames=("kind", "center"))
def _shape_distance(a, b, kind, center):
    if center:
        a, b = a - jnp.mean(a, axis=0), b - jnp.mean(b, axis=0)
    first, second = norm_of(jnp.sum(jnp.square(a))), norm_of(jnp.sum(jnp.square(b)))
    if kind == "size_and_shape":
        squares = jnp.square(first - second) + 2 * (first * second - _nuclear(a, b))
        return norm_of(squares)
    a, b = a / first, b / second
    fit = _nuclear(a, b)
    return norm_of(2 - 2 * fit) if kind == "normalised" else jnp.arccos(jnp.minimum(fit, 1.0))


@functools.cache
def procrustes_measure(form="paper"):
    """Procrustes as a `Measure`."""
    arguments.one_of("form", form, ("paper", "aristotelian"))

    def prepare(x):
        x = x - jnp.mean(x, axis=0)
        return x / norm_of(jnp.sum(jnp.square(x))) if form == "paper" else x

    def compare(a, b):
        if form == "paper":
            return _nuclear(a, b)
        first, second = norm_of(jnp.sum(jnp.square(a))), norm_of(jnp.sum(jnp.square(b)))
        squares = jnp.square(first - second) + 2 * (first * second - _nuclear(a, b))
        return 1 - norm_of(squares) / second

    return Measure(f"Procrustes, {form}", prepare, reorder_rows, compare)


def _nuclear(a, b):
    cross = jnp.matmul(a.T, b, precision=lax.Precision.HIGHEST)
    return jnp.sum(jnp.linalg.svd(cross, compute_uv=False))


def rsa(a, b, *, form, correlation="spearman", pairs=None, seed=0):
    """Correlation between two models' distances, over all pairs of samples.

    Args:
      a, b: features of the same n samples, `[n, d_a]` and `[n, d_b]`.
      form: which distance in a model. "paper", "resi" (its class's default): 1 − the correlation of two samples' features.
        "aristotelian": Euclidean. Aristotelian draws 8,192 pairs from PyTorch's global generator once there are more,
        without a word; here all pairs count unless `pairs` is given.
      correlation: of the distances: "spearman" (ranks, ties share their mean rank) or "pearson".
      pairs: a number of pairs of different samples to draw, with replacement; needed beyond 4,096 samples.
      seed: of the draw.
    Returns:
      float32 scalar, −1 to 1.
    Raises:
      InputError: unequal numbers of rows, fewer than 3, more than 4,096 without `pairs`, NaN, constant features, a word that
        is not accepted.

    Source: Kriegeskorte, Mur & Bandettini, Frontiers in Systems Neuroscience 2 (2008).
    """
    if pairs is None:
        return rsa_measure(form, correlation)(a, b)
    a, b = arguments.pair(a, b, 3)
    arguments.one_of("form", form, _FORMS)
    arguments.one_of("correlation", correlation, _CORRELATIONS)
    if not pairs >= 2:
        raise InputError(f"pairs: {pairs} was given; at least 2 is accepted")
    return _sampled(a, b, form, correlation, pairs, seed)


@functools.cache
def rsa_measure(form="paper", correlation="spearman"):
    """RSA over all pairs as a `Measure`."""
    arguments.one_of("form", form, _FORMS)
    arguments.one_of("correlation", correlation, _CORRELATIONS)

    def prepare(x):
        n = x.shape[0]
        upper = jnp.triu_indices(n, 1)
        values = _standardised(_distances(x, form)[upper], correlation)
        half = jnp.zeros((n, n)).at[upper].set(values * math.sqrt(0.5))
        return half + half.T

    def check(a, b):
        if a.shape[0] > LARGEST:
            raise InputError(
                f"a, b: {a.shape[0]} rows were given; up to {LARGEST} are accepted, more with pairs=NUMBER"
            )

    return Measure(
        f"RSA, {form}, {correlation}",
        prepare,
        reorder_both,
        lambda a, b: jnp.sum(a * b),
        3,
        check,
        inner_products,
    )


_FORMS = ("paper", "aristotelian", "resi")
_CORRELATIONS = ("spearman", "pearson")


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _sampled(a, b, form, correlation, pairs, seed):
    n = a.shape[0]
    first, second = jax.random.key(seed), jax.random.key(seed + 1)
    i = jax.random.randint(first, (pairs,), 0, n)
    j = (i + jax.random.randint(second, (pairs,), 1, n)) % n

    def values(x):
        if form == "aristotelian":
            return jnp.linalg.norm(x[i] - x[j], axis=1)
        x = unit_rows(x - jnp.mean(x, axis=1, keepdims=True))
        return 1 - jnp.sum(x[i] * x[j], axis=1)

    return jnp.sum(_standardised(values(a), correlation) * _standardised(values(b), correlation))


def _distances(x, form):
    if form == "aristotelian":
        return kernel_block("distance", rows_of(x), 0, x.shape[0])[0]
    x = unit_rows(x - jnp.mean(x, axis=1, keepdims=True))
    return 1 - jnp.matmul(x, x.T, precision=lax.Precision.HIGHEST)


def _standardised(values, correlation):
    """Values or their ranks, centred and of norm 1: inner products of two such are correlations."""
    if correlation == "spearman":
        ordered = jnp.sort(values)
        below = jnp.searchsorted(ordered, values, side="left", method="sort")
        upto = jnp.searchsorted(ordered, values, side="right", method="sort")
        values = 0.5 * (below + upto).astype(jnp.float32)
    values = values - jnp.mean(values)
    norm = norm_of(jnp.sum(jnp.square(values)))
    return values / jnp.where(norm > 0, norm, 1.0)
