"""Properties of all measures: invariances, oracles in float64, limits, gradients, errors."""

import doctest
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import A, B, C

from crate_jax import InputError, alignment
from crate_jax.alignment import MEASURES, kernels, measure, neighbors

CASES = {
    **{name: {} for name in MEASURES},
    "cka unbiased": {"unbiased": True},
    "cka rbf": {"kernel": "rbf"},
    "cka rbf unbiased": {"kernel": "rbf", "unbiased": True},
    "cknna released": {"form": "platonic"},
    "rsa euclidean": {"form": "aristotelian"},
}
# Correlations over features, and weights that are sums over features, change with a rotation.
FIXED_AXES = {"rsa", "pwcca"}
NOT_SYMMETRIC = {"cycle_knn", "pwcca", "cknna released"}
# One width, so that each measure is compiled once.
NARROW = B[:, : A.shape[1]]


def slow_but(few, cases):
    """The cases, those outside of `few` marked slow."""
    return [pytest.param(case, marks=[] if case in few else [pytest.mark.slow]) for case in cases]


def made(case):
    return measure(case.split(" ")[0], **CASES[case])


def rotation(d, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0].astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_invariances(case):
    """To the order of samples, rotations and the scale of features; most to the order of models; 1 for equal models."""
    one, value = made(case), made(case)(A, NARROW)
    order = np.random.default_rng(1).permutation(len(A))
    np.testing.assert_allclose(one(A[order], NARROW[order]), value, rtol=1e-5, atol=1e-6)
    turned = A if case in FIXED_AXES else A @ rotation(A.shape[1])
    np.testing.assert_allclose(one(3.7 * turned, NARROW), value, rtol=2e-5, atol=1e-6)
    if case not in NOT_SYMMETRIC:
        np.testing.assert_allclose(one(NARROW, A), value, rtol=1e-5)
    if case != "cycle_knn":  # A sample that is nobody's neighbour has no way back, in equal models either.
        top = 10 if case == "lcs_knn" else 1
        # Released CKNNA adds 1e-6 to its denominator.
        np.testing.assert_allclose(one(A, A), top, rtol=1e-4 if case == "cknna released" else 2e-5)


@pytest.mark.parametrize("case", slow_but({"cknna released", "cca", "procrustes", "rsa"}, CASES))
def test_reordering_what_was_prepared_is_preparing_what_was_reordered(case):
    one, order = made(case), np.random.default_rng(2).permutation(len(A))

    @jax.jit
    def reordered(a, b, order):
        return one.compare(one.prepare(a), one.permute(one.prepare(b), order))

    np.testing.assert_allclose(reordered(A, NARROW, order), one(A, NARROW[order]), rtol=1e-5, atol=1e-6)


def centred(k):
    return k - k.mean(0) - k.mean(1)[:, None] + k.mean()


def song(p, q):
    n = len(p)
    p, q = p - np.diag(np.diag(p)), q - np.diag(np.diag(q))
    return (np.trace(p @ q) + p.sum() * q.sum() / (n - 1) / (n - 2) - 2 / (n - 2) * (p @ q).sum()) / (
        n * (n - 3)
    )


def kernel(x, sigma=None):
    if sigma is None:
        return x @ x.T
    return np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / (2 * sigma**2))


@pytest.mark.parametrize(
    ("sigma", "unbiased"),
    [
        (None, True),
        pytest.param(None, False, marks=pytest.mark.slow),
        (7.0, False),
        pytest.param(7.0, True, marks=pytest.mark.slow),
    ],
)
def test_cka_against_float64(sigma, unbiased, monkeypatch):
    """By blocks of rows that do not divide n, by the whole matrix, and through the features where these are fewer."""
    monkeypatch.setattr(neighbors, "BLOCK", 3 * len(A))
    settings = {"kernel": "rbf", "sigma": sigma} if sigma else {}
    for x, y in ((A, NARROW), (A, C[:, : A.shape[1]])):
        p, q = (kernel(z.astype(np.float64), sigma) for z in (x, y))
        inner = song if unbiased else lambda s, t: np.sum(centred(s) * centred(t))
        oracle = inner(p, q) / np.sqrt(inner(p, p) * inner(q, q))
        for found in (
            alignment.cka(x, y, unbiased=unbiased, **settings),
            measure("cka", unbiased=unbiased, **settings)(x, y),
        ):
            np.testing.assert_allclose(found, oracle, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(kernels, "_features_are_fewer", lambda *sizes: False)
    jax.clear_caches()
    np.testing.assert_allclose(
        alignment.cka(x, y, unbiased=unbiased, **settings), oracle, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        alignment.hsic(x, y, unbiased=True, **settings), song(p, q), rtol=1e-5, atol=1e-6 * abs(song(p, p))
    )


def test_cka_survives_large_means_and_scales():
    """A mean of 1000 deviations, and features of 1e12, whose kernel squared no float32 holds."""
    oracle = alignment.cka(A, B, unbiased=True)
    np.testing.assert_allclose(alignment.cka(A + 1000, B, unbiased=True), oracle, rtol=1e-3)
    np.testing.assert_allclose(alignment.cka(1e12 * A, 1e-12 * B, unbiased=True), oracle, rtol=1e-5)


def test_unbiased_cka_may_be_negative_and_is_never_nan():
    assert alignment.cka(A, C, unbiased=True) < 0
    constant_but_one = np.zeros((6, 2), np.float32)
    constant_but_one[0] = 1
    for unbiased in (False, True):
        assert np.isfinite(alignment.cka(constant_but_one, A[:6], unbiased=unbiased))


def lists(x, k):
    x = x.astype(np.float64)
    scores = x @ x.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("k", [1, 7, 199])
def test_neighbours_by_blocks_and_groups(k, monkeypatch):
    monkeypatch.setattr(neighbors, "BLOCK", 37 * len(A))
    jax.clear_caches()
    coarse = (
        np.round(8 * A) / 8
    )  # Products and their sums are exact in float32: no order is a matter of rounding.
    found = alignment.nearest_neighbors(coarse, k, similarity="inner")
    np.testing.assert_array_equal(found, lists(coarse, k))


@pytest.mark.parametrize("n", [1, 40, 997])
def test_largest_in_groups(n):
    scores = np.random.default_rng(0).standard_normal((5, n)).astype(np.float32)
    values, places = neighbors.largest(jnp.asarray(scores), min(n, 3))
    oracle = np.argsort(-scores, axis=1)[:, :3]
    np.testing.assert_array_equal(places, oracle)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, oracle, 1))


def test_ranked_lists_against_dynamic_programming():
    def table(p, q, edit):
        best = np.zeros((len(p) + 1, len(q) + 1), int)
        if edit:
            best[0], best[:, 0] = np.arange(len(q) + 1), np.arange(len(p) + 1)
        for i, s in enumerate(p):
            for j, t in enumerate(q):
                if edit:
                    best[i + 1, j + 1] = min(best[i, j] + (s != t), best[i, j + 1] + 1, best[i + 1, j] + 1)
                else:
                    best[i + 1, j + 1] = max(best[i, j] + (s == t), best[i, j + 1], best[i + 1, j])
        return best[-1, -1]

    a, b = lists(A[:40], 6), lists(B[:40], 6)
    oracle = np.mean([table(p, q, False) for p, q in zip(a, b, strict=True)])
    np.testing.assert_allclose(alignment.lcs_knn(A[:40], B[:40], 6, similarity="inner"), oracle, rtol=1e-6)
    oracle = 1 - np.mean([table(p, q, True) for p, q in zip(a, b, strict=True)]) / 6
    np.testing.assert_allclose(
        alignment.edit_distance_knn(A[:40], B[:40], 6, similarity="inner"), oracle, rtol=1e-6
    )


def test_paper_cknna_against_float64():
    def align(p, q, mask):
        return np.sum(mask * centred(p) * centred(q))

    k = 10
    kernels_of, masks = [], []
    for x in (A, B):
        x = x.astype(np.float64)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        kernels_of.append(x @ x.T)
        mask = np.zeros((len(x), len(x)))
        np.put_along_axis(mask, lists(x, k), 1, axis=1)
        masks.append(mask)
    (p, q), (m, o) = kernels_of, masks
    oracle = align(p, q, m * o) / np.sqrt(align(p, p, m) * align(q, q, o))
    np.testing.assert_allclose(alignment.cknna(A, B, k, form="paper"), oracle, rtol=1e-5)


def test_cknna_of_all_neighbours():
    """As k → n − 1 the released form becomes unbiased CKA, the paper's form CKA without the kernels' diagonals."""
    k = len(A) - 1
    released = alignment.cknna(A, B, k, form="platonic", similarity="inner")
    np.testing.assert_allclose(released, alignment.cka(A, B, unbiased=True), rtol=1e-5)
    p, q = (centred(kernel(x.astype(np.float64))) for x in (A, B))
    for z in (p, q):
        np.fill_diagonal(z, 0)
    oracle = np.sum(p * q) / np.sqrt(np.sum(p * p) * np.sum(q * q))
    np.testing.assert_allclose(alignment.cknna(A, B, k, form="paper", similarity="inner"), oracle, rtol=1e-5)


SMOOTH = {
    "cka": {},
    "cka unbiased": {"unbiased": True},
    "cka rbf": {"kernel": "rbf", "sigma": 5.0},
    "distance_correlation": {},
    "cknna": {"form": "paper"},
    "procrustes": {},
}


@pytest.mark.parametrize("case", slow_but({"cka unbiased", "cknna"}, SMOOTH))
def test_gradients(case, monkeypatch):
    """Against differences along a direction, and through several blocks."""
    monkeypatch.setattr(neighbors, "BLOCK", 11 * 40)
    jax.clear_caches()
    a, b = jnp.asarray(A[:40]), jnp.asarray(B[:40])
    if case in ("cka", "cka unbiased", "cka rbf"):
        function = lambda x: alignment.cka(x, b, **SMOOTH[case])  # noqa: E731
    elif case == "distance_correlation":
        function = lambda x: alignment.distance_correlation(x, b)  # noqa: E731
    else:
        one = measure(case, **SMOOTH[case])
        function = lambda x: one(x, b)  # noqa: E731
    direction = jnp.asarray(np.random.default_rng(3).standard_normal(a.shape), jnp.float32)
    gradient = jax.grad(function)(a)
    assert np.isfinite(gradient).all()
    step = 3e-3
    difference = (function(a + step * direction) - function(a - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(gradient * direction), difference, rtol=2e-2, atol=2e-4)


def test_under_jit():
    found = jax.jit(lambda a, b: alignment.mutual_knn(a, b, k=5))(A, B)
    assert found == alignment.mutual_knn(A, B, k=5)


BAD = {
    "other numbers of rows": ((A, B[:150]), {}, "200 and 150 rows were given"),
    "NaN": ((np.where(A > 2, np.nan, A), B), {}, "a: NaN or infinite entries were given"),
    "infinite": ((A, np.where(B > 1, np.inf, B)), {}, "b: NaN or infinite"),
    "k too large": ((A[:10], B[:10]), {"k": 10}, "k: 10 was given for 10 rows; a whole number from 1 to 9"),
    "k of 0": ((A, B), {"k": 0}, "k: 0 was given"),
    "constant": ((np.ones_like(A), B), {}, "a: constant features were given"),
    "one row": ((A[:1], B[:1]), {}, "a: 1 rows were given; at least 2 are accepted"),
    "whole numbers": ((A.astype(int), B), {}, "a: dtype int64 was given"),
    "a vector": ((A[0], B), {}, "a: shape (48,) was given; [n, d] is accepted"),
    "similarity": ((A, B), {"similarity": "dot"}, "similarity: 'dot' was given; 'cosine', 'inner'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case):
    (a, b), settings, message = BAD[case]
    with pytest.raises(InputError) as caught:
        alignment.mutual_knn(a, b, **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_other_bad_settings():
    for call, message in (
        (lambda: alignment.cka(A[:3], B[:3], unbiased=True), "3 rows were given; at least 4"),
        (lambda: alignment.cka(A, B, "cubic"), "kernel: 'cubic' was given; 'linear', 'rbf' is accepted"),
        (lambda: alignment.cka(A, B, form="mine"), "form: 'mine' was given"),
        (lambda: alignment.cka(A, B, unbiased=True, form="resi"), "ReSi has only biased linear CKA"),
        (lambda: alignment.svcca(A, B, form="aristotelian", components=49), "components: 49 was given for a"),
        (lambda: alignment.cknna(A, B, 1, form="platonic"), "k: 1 was given; at least 2"),
        (lambda: measure("cosine"), "measure: 'cosine' was given; 'mutual_knn'"),
        (lambda: measure("mutual_knn", form="paper"), "mutual_knn: setting 'form' was given; k, similarity"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    with pytest.raises(TypeError, match="form"):
        alignment.cknna(A, B)


@pytest.mark.parametrize("module", ["calibration", "cka", "knn", "measures", "neighbors"])
def test_examples_in_docstrings(module):
    found = doctest.testmod(importlib.import_module(f"crate_jax.alignment.{module}"))
    assert found.attempted and not found.failed
