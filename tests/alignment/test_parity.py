"""Every measure against what the released libraries returned for the same features."""

from functools import partial

import jax
import numpy as np
import pytest
from golden import OFFICIAL, PAIRS, VALUES, B, expected, prepared

from crate_jax import alignment
from crate_jax.alignment.cca import randomised

KERNELS = 1e-5


# One width for all: columns of zeros change neither inner products nor distances, and one compilation serves all pairs.
SAME_WIDTH = {id(x): np.pad(x, ((0, 0), (0, B.shape[1] - x.shape[1]))) for pair in PAIRS for x in pair}


def scores(measure, how="raw", *, pad=False):
    return [float(measure(*(prepared(SAME_WIDTH[id(x)] if pad else x, how) for x in pair))) for pair in PAIRS]


# Key of the library → the same measure here. Each is tried on raw and on unit rows where the library was.
NEIGHBOURS = {
    f"platonic/{name}_knn_k{k}": partial(getattr(alignment, f"{name}_knn"), k=k, similarity="inner")
    for k in (5, 10)
    for name in ("mutual", "cycle", "lcs", "edit_distance")
}
JACCARD = {
    "resi/JaccardSimilarity_k5": partial(alignment.jaccard_knn, k=5),
    "resi/JaccardSimilarity_k10": partial(alignment.jaccard_knn, k=10),
    "resi/JaccardSimilarity_k10_euclidean": partial(alignment.jaccard_knn, k=10, similarity="euclidean"),
}
CKNNA = {
    f"platonic/cknna_k{k}_{'unbiased' if unbiased else 'biased'}": partial(
        alignment.cknna, k=k, form="platonic", similarity="inner", unbiased=unbiased
    )
    for k in (5, 10)
    for unbiased in (False, True)
}
CKA = {
    "aristotelian/cka_linear": partial(alignment.cka, form="aristotelian"),
    "aristotelian/cka_unbiased": partial(alignment.cka, unbiased=True, form="aristotelian"),
    "aristotelian/cka_rbf_median": partial(alignment.cka, kernel="rbf", form="aristotelian"),
    "aristotelian/rv": alignment.rv_coefficient,
    "resi/CKA": partial(alignment.cka, form="resi"),
    "resi/DistanceCorrelation": alignment.distance_correlation,
} | {
    f"{key}_{'unbiased' if unbiased else 'biased'}": partial(
        alignment.cka, unbiased=unbiased, form=key.split("/")[0], **settings
    )
    for unbiased in (False, True)
    for key, settings in {
        "platonic/cka_linear": {},
        "platonic/cka_rbf_s0.8": {"kernel": "rbf", "sigma": 0.8},
        "platonic/cka_rbf_s5.0": {"kernel": "rbf", "sigma": 5.0},
        "aristotelian/cka_general_ip": {},
        "aristotelian/cka_general_rbf_s5.0": {"kernel": "rbf", "sigma": 5.0},
    }.items()
}
OTHERS = {
    "aristotelian/cca_mean": partial(alignment.cca, form="aristotelian"),
    "aristotelian/svcca_10": partial(alignment.svcca, form="aristotelian"),
    "aristotelian/svcca_20": partial(alignment.svcca, form="aristotelian", components=20),
    "aristotelian/pwcca": partial(alignment.pwcca, form="aristotelian"),
    "aristotelian/procrustes": partial(alignment.procrustes, form="aristotelian"),
    "aristotelian/rsa_full": partial(alignment.rsa, form="aristotelian"),
    "resi/cca_mean": partial(alignment.cca, form="resi"),
    "resi/SVCCA": partial(alignment.svcca, form="resi"),
    "resi/svcca_totalvar1": partial(alignment.svcca, form="paper"),
    "resi/OrthogonalProcrustesCenteredAndNormalized": alignment.shape_distance,
    "resi/ProcrustesSizeAndShapeDistance": partial(alignment.shape_distance, kind="size_and_shape"),
    "resi/OrthogonalAngularShapeMetricCentered": partial(alignment.shape_distance, kind="angular"),
    "netrep/LinearMetric_a1.0_euclidean_nocenter": partial(
        alignment.shape_distance, kind="size_and_shape", center=False
    ),
    "netrep/LinearMetric_a1.0_angular_nocenter": partial(
        alignment.shape_distance, kind="angular", center=False
    ),
    "resi/RSA": partial(alignment.rsa, form="resi"),
    "own/rsa_correlation_pearson": partial(alignment.rsa, form="paper", correlation="pearson"),
    "own/rsa_euclidean_pearson": partial(alignment.rsa, form="aristotelian", correlation="pearson"),
}


# What the quick tests leave to the slow ones: other settings of what they have tried.
SLOW = ("knn_k10", "cknna_k5", "s0.8", "general", "svcca_20", "_nocenter", "Size", "own/", "euclidean")


def cases(table):
    return [
        pytest.param(
            key, measure, id=key, marks=[pytest.mark.slow] if any(word in key for word in SLOW) else []
        )
        for key, measure in table.items()
    ]


def both(key):
    """The ways in which the library was given the features, raw and unit rows."""
    # With a bandwidth of 0.8 the kernel of raw rows is the identity, whose unbiased CKA is 0/0.
    return [
        how for how in ("raw", "unit") if f"{key}/{how}" in VALUES and (how == "unit" or "s0.8_un" not in key)
    ]


@pytest.mark.parametrize(("key", "measure"), cases(NEIGHBOURS | JACCARD))
def test_neighbour_lists_are_those_of_the_library(key, measure):
    for how in both(key):
        # Means of n whole numbers (or fractions with denominators up to 2k): equal as exact numbers.
        np.testing.assert_allclose(scores(measure, how, pad=True), VALUES[f"{key}/{how}"], rtol=3e-7)


def test_aristotelian_neighbours_are_platonic_ones():
    for key in VALUES:
        if key.startswith("aristotelian/") and any(
            word in key for word in ("mutual_knn", "cycle_knn", "cknna")
        ):
            np.testing.assert_array_equal(VALUES[key], VALUES[key.replace("aristotelian", "platonic")])


@pytest.mark.parametrize(("key", "measure"), cases(CKNNA | CKA))
def test_kernels_are_those_of_the_library(key, measure):
    for how in both(key):
        # What is a difference of nearly equal numbers is right to 1e-6 of those.
        found = scores(measure, how, pad=True)
        np.testing.assert_allclose(found, expected(f"{key}/{how}"), rtol=KERNELS, atol=3e-7)


@pytest.mark.parametrize(("key", "measure"), cases(OTHERS))
def test_shapes_are_those_of_the_library(key, measure):
    for how in both(key):
        found = scores(measure, how)
        np.testing.assert_allclose(found, expected(f"{key}/{how}"), rtol=KERNELS, atol=3e-7)


@pytest.mark.slow
def test_the_official_values():
    a, b = OFFICIAL["feats_a"], OFFICIAL["feats_b"]
    for k in (5, 10):
        for name in ("mutual_knn", "cycle_knn", "lcs_knn"):
            found = getattr(alignment, name)(a, b, k, similarity="inner")
            np.testing.assert_allclose(found, OFFICIAL[f"{name}_{k}"], rtol=3e-7)
        found = alignment.cknna(a, b, k, form="platonic", similarity="inner")
        np.testing.assert_allclose(found, OFFICIAL[f"cknna_{k}"], rtol=KERNELS)
    for key, settings in {
        "cka": {},
        "cka_rbf": {"kernel": "rbf", "sigma": 0.8},
        "unbiased_cka": {"unbiased": True},
    }.items():
        found = alignment.cka(a, b, **settings, form="platonic")
        np.testing.assert_allclose(found, OFFICIAL[key], rtol=KERNELS)


def test_resi_pwcca_follows_its_singular_vectors():
    """Its number depends on the signs of singular vectors; those of the same LAPACK routine give the same number."""
    found = [float(alignment.pwcca(x, y, form="resi")) for x, y in PAIRS[:2]]
    np.testing.assert_allclose(found, expected("resi/PWCCA/raw")[:2], rtol=KERNELS)
    with pytest.raises(ValueError, match="64 and 48 features were given"):
        alignment.pwcca(*PAIRS[2], form="resi")


def test_randomised_svcca_agrees_in_distribution():
    """Both draw a random subspace: means over 20 draws within three standard errors of their difference."""
    one = alignment.measure("svcca", form="platonic")

    @jax.jit
    @jax.vmap
    def draw(key, a, b):
        return one.compare(randomised(a, 10, key), randomised(b, 10, key))

    keys = jax.random.split(jax.random.key(0), 20)
    found = np.array(draw(keys, *(np.broadcast_to(x, (20, *x.shape)) for x in PAIRS[0])))
    mean, deviation = (VALUES[f"platonic/svcca_10/raw/{what}"][0] for what in ("mean", "std"))
    assert abs(found.mean() - mean) < 3 * np.sqrt((found.std() ** 2 + deviation**2) / 20)
    assert alignment.svcca(*PAIRS[0], form="platonic", seed=1) != alignment.svcca(*PAIRS[0], form="platonic")


def test_sampled_rsa_is_near_the_library_s_sample():
    measure = partial(alignment.rsa, form="aristotelian", pairs=8192)
    mean, deviation = (VALUES[f"aristotelian/rsa_sampled8192/raw/{what}"] for what in ("mean", "std"))
    assert np.all(np.abs(np.array(scores(measure)) - mean) < 4 * deviation)
