"""Canonical correlations: how well directions of one model's features can be predicted linearly from the other's.

All are far from 0 by chance: the mean canonical correlation of two unrelated models of d features each is near √(d/n), and
exactly 1 where d ≥ n − 1.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from crate_jax import InputError
from crate_jax.alignment import arguments
from crate_jax.alignment.measure import Measure, reorder_rows

# Added by Aristotelian to the diagonals of both covariances.
RIDGE = 1e-6
# Share of the variance that SVCCA keeps.
KEPT = 0.99
COMPONENTS = 10
# Power iterations of platonic-rep's randomised decomposition.
ITERATIONS = 2


class Whitened(NamedTuple):
    """Centred features X = U S Vᵀ as canonical correlations need them.

    Attributes:
      basis: `[n, r]`, U; its columns scaled down where a ridge is added, 0 where a direction is left out.
      loadings: `[r, d]`, S Vᵀ.
      kept: how many directions count.
    """

    basis: jax.Array
    loadings: jax.Array
    kept: jax.Array


def cca(a, b, *, form):
    """Mean canonical correlation between the features of two models.

    The singular values of U_aᵀU_b, with U the left singular vectors of the centred features, averaged over min(d_a, d_b).

    Args:
      a, b: features of the same n samples, `[n, d_a]` and `[n, d_b]`.
      form: "paper" and "resi" are exact (directions that are zero to float32 are left out of the mean); "aristotelian" adds
        1e-6 to the diagonals of both covariances.
    Returns:
      float32 scalar, 0 to 1.
    Raises:
      InputError: unequal numbers of rows, fewer than 3, NaN, constant features, a form that is not accepted.

    Source: Hotelling, Biometrika 28 (1936); Raghu et al. (arXiv 1706.05806) for networks.
    """
    return cca_measure(form)(a, b)


def svcca(a, b, *, form, components=None, seed=0):
    """Mean canonical correlation between the principal components of two models.

    Args:
      a, b: as for `cca`.
      form: "paper": as many components of each as hold 99 % of its variance, or `components`.
        "aristotelian": `components` (10) of each, 1e-6 added to the covariances' diagonals.
        "platonic": columns scaled to unit variance; `components` (10) from a randomised decomposition with two power
        iterations and no more columns than components. It misses part of the leading directions, so that the number depends
        on `seed` (±0.02 at n = 200) and is lower than that of the exact components.
        "resi": its rule as released, which compares shares of the variance with 0.99 times the total variance: it keeps one
        component unless the total variance is about 1.
      components: see form.
      seed: of the platonic form.
    Returns:
      float32 scalar, 0 to 1.
    Raises:
      InputError: as `cca`; more components than features or samples.

    Source: Raghu et al., SVCCA (arXiv 1706.05806).
    """
    return svcca_measure(form, components, seed)(a, b)


def pwcca(a, b, *, form):
    """Canonical correlations averaged with weights: directions that carry more of model a count for more. Not symmetric.

    Σ_i α_i ρ_i / Σ_i α_i with canonical correlations ρ_i and canonical variates h_i of a.

    Args:
      a, b: as for `cca`.
      form: "paper": α_i = Σ_j |⟨h_i, x_j⟩| over the features x_j of a.
        "aristotelian": α_i = Σ_s |h_i(s)| over samples, which is nearly uniform, so the number is nearly that of `cca`;
        1e-6 added to the covariances' diagonals.
        "resi" (and google/svcca): the projection leaves the whitening out and adds the features' means to other
        directions, so that the number depends on the signs that LAPACK gives to singular vectors. Needs d_a ≤ d_b.
    Returns:
      float32 scalar, 0 to 1.
    Raises:
      InputError: as `cca`; "resi" with a wider than b.

    Source: Morcos et al. (arXiv 1806.05759), Section 3.
    """
    return pwcca_measure(form)(a, b)


@functools.cache
def cca_measure(form="paper"):
    """Mean CCA as a `Measure`."""
    arguments.one_of("form", form, ("paper", "aristotelian", "resi"))
    ridge = RIDGE if form == "aristotelian" else 0.0
    return _mean_of_correlations(f"CCA mean, {form}", lambda x: whiten(x, ridge=ridge))


@functools.cache
def svcca_measure(form="paper", components=None, seed=0):
    """SVCCA as a `Measure`."""
    arguments.one_of("form", form, ("paper", "platonic", "aristotelian", "resi"))
    if form == "resi" and components is not None:
        raise InputError(f"components: {components} was given; form 'resi' accepts none")
    if form in ("platonic", "aristotelian"):
        components = components or COMPONENTS

    def prepare(x):
        if form == "platonic":
            return randomised(x, components, jax.random.key(seed))
        return whiten(x, ridge=RIDGE if form == "aristotelian" else 0.0, keep=components or form)

    def check(a, b):
        for name, x in (("a", a), ("b", b)):
            if components is not None and not 1 <= components <= min(x.shape[0] - 1, x.shape[1]):
                raise InputError(
                    f"components: {components} was given for {name} of shape {tuple(x.shape)}; "
                    f"1 to {min(x.shape[0] - 1, x.shape[1])} is accepted"
                )

    settings = "" if components is None else f", {components} components"
    return _mean_of_correlations(f"SVCCA, {form}{settings}", prepare, check)


def _mean_of_correlations(name, prepare, check=lambda a, b: None):
    def compare(a, b):
        correlations = jnp.linalg.svd(_cross(a.basis, b.basis), compute_uv=False)
        return jnp.sum(correlations) / jnp.minimum(a.kept, b.kept)

    return Measure(name, prepare, _permute, compare, 3, check)


@functools.cache
def pwcca_measure(form="paper"):
    """PWCCA as a `Measure`."""
    arguments.one_of("form", form, ("paper", "aristotelian", "resi"))
    if form == "resi":
        return Measure("PWCCA, resi", lambda x: x, reorder_rows, _released_pwcca, 3, _wide_enough)
    ridge = RIDGE if form == "aristotelian" else 0.0

    def compare(a, b):
        directions, correlations, _ = jnp.linalg.svd(_cross(a.basis, b.basis), full_matrices=False)
        if form == "paper":
            projections = jnp.matmul(directions.T, a.loadings, precision=lax.Precision.HIGHEST)
            weights = jnp.sum(jnp.abs(projections), axis=1)
        else:
            variates = jnp.matmul(a.basis, directions, precision=lax.Precision.HIGHEST)
            weights = jnp.sum(jnp.abs(variates), axis=0)
        return jnp.sum(weights * correlations) / jnp.sum(weights)

    return Measure(f"PWCCA, {form}", lambda x: whiten(x, ridge=ridge), _permute, compare, 3)


def whiten(x, *, ridge=0.0, keep=None):
    """Centred features as `Whitened`.

    Args:
      x: `[n, d]`.
      ridge: added to the diagonal of the covariance (with n − 1).
      keep: a number of components; "paper": those that hold 99 % of the variance; "resi": see `svcca`; None: all that are
        not zero to float32.
    """
    n, d = x.shape
    x = x - jnp.mean(x, axis=0)
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    place = jnp.arange(s.size)
    real = s > s[0] * max(n, d) * jnp.finfo(jnp.float32).eps
    if isinstance(keep, int):
        real &= place < keep
    elif keep in ("paper", "resi"):
        share = jnp.cumsum(jnp.square(s)) / jnp.sum(jnp.square(s))
        threshold = KEPT if keep == "paper" else KEPT * jnp.sum(jnp.square(s))
        # The first component that reaches the threshold; component 0 where none does.
        real &= place <= jnp.argmax(share >= threshold)
    scale = s / jnp.sqrt(jnp.square(s) + ridge * (n - 1)) if ridge else 1.0
    kept = jnp.minimum(n, d) if ridge and keep is None else jnp.sum(real)
    return Whitened(jnp.where(real, u * scale, 0.0), jnp.where(real[:, None], s[:, None] * vt, 0.0), kept)


def randomised(x, components, key):
    """Left singular vectors after Halko, Martinsson & Tropp (2011) without oversampling, as platonic-rep calls for them."""
    x = x - jnp.mean(x, axis=0)
    deviation = jnp.std(x, axis=0)
    x = x / jnp.where(deviation > 0, deviation, 1.0)

    def times(left, right):
        return jnp.linalg.qr(jnp.matmul(left, right, precision=lax.Precision.HIGHEST))[0]

    found = times(x, jax.random.normal(key, (x.shape[1], components)))
    for _ in range(ITERATIONS):
        found = times(x, times(x.T, found))
    # Correlations see only the space that they span.
    return Whitened(found, jnp.matmul(found.T, x, precision=lax.Precision.HIGHEST), jnp.asarray(components))


def _permute(prepared, order):
    return prepared._replace(basis=prepared.basis[order])


def _cross(a, b):
    return jnp.matmul(a.T, b, precision=lax.Precision.HIGHEST)


def _released_pwcca(a, b):
    """google/svcca's computation, which ReSi inherits: `directions` are not divided by the roots of the covariance."""
    mean = jnp.mean(a, axis=0)
    x, y = a - mean, b - jnp.mean(b, axis=0)
    root_x, root_y = (_inverse_root(_cross(z, z) / (a.shape[0] - 1)) for z in (x, y))
    cross = _cross(x, y) / (a.shape[0] - 1)
    whitened = jnp.linalg.multi_dot([root_x, cross, root_y], precision=lax.Precision.HIGHEST)
    directions, correlations, _ = jnp.linalg.svd(whitened, full_matrices=False)
    variates, _ = jnp.linalg.qr(jnp.matmul(x, directions, precision=lax.Precision.HIGHEST) + mean)
    weights = jnp.sum(jnp.abs(_cross(variates, a)), axis=1)
    return jnp.sum(weights * correlations) / jnp.sum(weights)


def _inverse_root(covariance):
    values, vectors = jnp.linalg.eigh(covariance)
    scaled = vectors / jnp.sqrt(jnp.maximum(values, jnp.finfo(jnp.float32).tiny))
    return jnp.matmul(scaled, vectors.T, precision=lax.Precision.HIGHEST)


def _wide_enough(a, b):
    if a.shape[1] > b.shape[1]:
        raise InputError(
            f"a, b: {a.shape[1]} and {b.shape[1]} features were given; form 'resi' accepts an a that is not wider than b"
        )
