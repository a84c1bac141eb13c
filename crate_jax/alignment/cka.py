"""Centred kernel alignment, the RV coefficient, distance correlation: cosines of centred kernel matrices."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from crate_jax import InputError
from crate_jax.alignment import arguments
from crate_jax.alignment.kernels import (
    DENSE,
    KERNELS,
    Products,
    Rows,
    centred,
    median_distance,
    norm_of,
    products,
    row_sums,
    rows_of,
)
from crate_jax.alignment.measure import Measure, inner_products, reorder_both, reorder_rows

# What the released code adds to ‖K‖ ‖L‖, where these are √tr(KHKH) or √ of the unbiased HSIC.
ADDED = {"paper": 0.0, "platonic": 1e-6, "aristotelian": 1e-8, "resi": 0.0}


def cka(a, b, kernel="linear", unbiased=False, *, sigma=None, form="paper"):
    """Centred kernel alignment: the cosine between two models' matrices of similarities among samples.

    CKA = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)). Biased: HSIC = tr(KHLH) with H = I − 11ᵀ/n, between 0 and 1, and far from 0
    by chance where features are many and samples few. Unbiased: HSIC of Song et al. (2012), 0 on average for unrelated
    features and hence negative about half of the time. Differentiable. Memory is linear in n.

    Args:
      a, b: features of the same n samples, `[n, d_a]` and `[n, d_b]`; nothing need be centred.
      kernel: "linear" or "rbf", exp(−|x − y|²/2σ²).
      unbiased: which estimate of HSIC.
      sigma: bandwidth of "rbf" in units of the features, one for both models. None: for each model the median distance
        between two samples ("platonic": 1, its default).
      form: the libraries agree but for a constant. "paper", "resi": none. "platonic", "aristotelian": 1e-6, 1e-8 added to
        the denominator, which shows where unbiased HSIC is small (1e-5 of linear CKA on unit rows). With sigma=None
        "aristotelian" takes the lower median of all n² distances, zeros of the diagonal among them. ReSi has only the
        biased linear one.
    Returns:
      float32 scalar, at most 1.
    Raises:
      InputError: unequal numbers of rows, fewer than 2 (unbiased: 4), NaN, constant features, an unknown kernel or form.

    Source: Kornblith et al. (arXiv 1905.00414), Section 3; Song et al., JMLR 13 (2012), for the unbiased HSIC.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0], [4.0, 1.0]])
    >>> round(float(cka(x, 3 * x[:, ::-1])), 5)
    1.0
    """
    return cka_measure(kernel, unbiased, sigma, form, dense=0)(a, b)


def hsic(a, b, kernel="linear", unbiased=True, *, sigma=None):
    """Hilbert-Schmidt independence criterion: the covariance of two models' similarities among samples.

    Unbiased: Σ_{i≠j} K̃_ij L̃_ij / (n(n − 3)) with U-centred K̃ and L̃ (Song et al. 2012); 0 on average for unrelated features,
    negative half of the time. Biased: tr(KHLH)/(n − 1)² (Gretton et al. 2005).

    Arguments, errors: as `cka`. Returns a float32 scalar in units of the kernels.
    """
    a, b = arguments.pair(a, b, 4 if unbiased else 2)
    arguments.one_of("kernel", kernel, KERNELS)
    return _hsic(a, b, kernel, unbiased, sigma)


@functools.partial(jax.jit, static_argnames=("kernel", "unbiased"))
def _hsic(a, b, kernel, unbiased, sigma):
    n = a.shape[0]
    rows = [rows_of(x, _bandwidth(x, kernel, sigma, "paper")) for x in (a, b)]
    return products(kernel, *rows, unbiased).ab / (n * (n - 3) if unbiased else (n - 1) ** 2)


def rv_coefficient(a, b):
    """Escoufier's RV: the cosine between two models' matrices of inner products, columns centred.

    It equals biased linear CKA, and is here under the name by which statistics knows it. Arguments, errors: as `cka`.

    Source: Robert & Escoufier, Applied Statistics 25 (1976).
    """
    return cka(a, b)


def distance_correlation(a, b):
    """How far distances between samples in one model tell those in the other: 0 only for independent features (n → ∞).

    dCor = √(⟨A, B⟩ / (‖A‖ ‖B‖)), A and B the matrices of Euclidean distances with row and column means taken off. The square
    root is taken, as ReSi's `DistanceCorrelation` does; some texts call the square by this name. Biased: well above 0 by
    chance. Differentiable, memory linear in n.

    Arguments, errors: as `cka`. Returns float32, 0 to 1.

    Source: Székely, Rizzo & Bakirov, Annals of Statistics 35 (2007).
    """
    return distance_correlation_measure(dense=0)(a, b)


class Centred(NamedTuple):
    """A centred kernel matrix `[n, n]` of Frobenius norm 1, and the norm that it had."""

    matrix: jax.Array
    norm: jax.Array


@functools.cache
def cka_measure(kernel="linear", unbiased=False, sigma=None, form="paper", *, dense=DENSE):
    """CKA as a `Measure`; of up to `dense` samples it keeps the n × n matrix, which makes permutations cheap."""
    arguments.one_of("kernel", kernel, KERNELS)
    arguments.one_of("form", form, tuple(ADDED))
    if form == "resi" and (kernel, unbiased) != ("linear", False):
        raise InputError("form: 'resi' was given; ReSi has only biased linear CKA")
    if sigma is not None and not sigma > 0:
        raise InputError(f"sigma: {sigma} was given; a number above 0 is accepted")
    if sigma is None and form == "platonic":
        sigma = 1.0
    words = f"{'unbiased ' if unbiased else ''}{kernel} CKA, {form}"
    return _cosine(words, kernel, unbiased, sigma, form, dense, 4 if unbiased else 2)


@functools.cache
def distance_correlation_measure(*, dense=DENSE):
    """Distance correlation as a `Measure`."""
    return _cosine("distance correlation", "distance", False, None, "paper", dense, 2, norm_of)


def _cosine(name, kernel, unbiased, sigma, form, dense, least, finish=None):
    exact, finish = finish is None, finish or (lambda cosine: cosine)
    added = ADDED[form]
    rescale = not added and kernel != "rbf"

    def scaled(norm_product, n):
        return norm_product / (n * (n - 3)) if unbiased else norm_product

    def prepare(x):
        rows = rows_of(x, _bandwidth(x, kernel, sigma, form), rescale)
        if x.shape[0] > dense:
            return rows
        matrix = centred(kernel, rows, unbiased)
        norm = norm_of(jnp.sum(jnp.square(matrix)))
        return Centred(matrix / jnp.where(norm > 0, norm, 1.0), norm)

    def permute(prepared, order):
        if isinstance(prepared, Rows):
            return Rows(*reorder_rows(prepared[:2], order), prepared.sigma)
        return Centred(reorder_both(prepared.matrix, order), prepared.norm)

    def less(cosine, norms, n):
        """The cosine with the library's constant in its denominator."""
        return cosine * scaled(norms, n) / (scaled(norms, n) + added) if added else cosine

    def compare(a, b):
        if isinstance(a, Rows):
            n = a.x.shape[0]
            parts = (scaled(part, n) for part in products(kernel, a, b, unbiased))
            return finish(Products(*parts).cosine(added))
        return finish(less(jnp.sum(a.matrix * b.matrix), a.norm * b.norm, a.matrix.shape[0]))

    def table(a, b, orders):
        if isinstance(a, Rows):
            pairs = jax.vmap(jax.vmap(compare, (None, 0)), (0, None))
            return lax.map(lambda order: pairs(a, jax.vmap(permute, (0, None))(b, order)), orders)
        cosines = inner_products(a.matrix, b.matrix, orders)
        return finish(less(cosines, a.norm[:, None] * b.norm, a.matrix.shape[1]))

    def chance(a, b):
        """tr K tr L / ((n − 1) ‖K‖ ‖L‖) for centred K and L; the unbiased ones have no trace."""
        if unbiased:
            return jnp.zeros(())
        if isinstance(a, Rows):
            n = a.x.shape[0]
            norms = products(kernel, a, b, unbiased)
            norms = norm_of(norms.aa) * norm_of(norms.bb)
            return less(_trace(kernel, a) * _trace(kernel, b) / ((n - 1) * norms), norms, n)
        n = a.matrix.shape[0]
        return less(jnp.trace(a.matrix) * jnp.trace(b.matrix) / (n - 1), a.norm * b.norm, n)

    return Measure(name, prepare, permute, compare, least, table=table, chance=chance if exact else None)


def _trace(kernel, rows):
    """Trace of the centred kernel matrix. The kernels here (1 taken off "rbf") are 0 on the diagonal, but for "linear"."""
    if kernel == "linear":
        return jnp.sum(rows.squares)
    return -jnp.sum(row_sums(kernel, rows, False)) / rows.x.shape[0]


def _bandwidth(x, kernel, sigma, form):
    if kernel != "rbf" or sigma is not None:
        return sigma
    return median_distance(x, whole=form == "aristotelian")
