"""Permutation nulls: the released numbers, exact means by enumeration, how often a true null is rejected."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import LAYERS_A, LAYERS_B, NULLS, PERMUTATIONS, VALUES, A, B, C

from crate_jax import InputError
from crate_jax.alignment import (
    calibrate,
    compare_layers,
    interval,
    measure,
    neighbors,
    p_values,
    permutations,
    score_table,
)

RELEASED = {
    "mutual_knn_k10": measure("mutual_knn", similarity="inner"),
    "cka_linear": measure("cka", form="aristotelian"),
    "cknna_k10_unbiased": measure("cknna", form="aristotelian", similarity="inner"),
}


@pytest.mark.parametrize(
    "key",
    [pytest.param(key, marks=[pytest.mark.slow] if "cknna" in key else []) for key in RELEASED],
)
def test_layers_against_the_released_calibration(key):
    found = compare_layers(RELEASED[key], LAYERS_A, LAYERS_B, permutations=PERMUTATIONS)
    name = f"calib/layers/{key}/raw/ab"
    np.testing.assert_allclose(found.scores, VALUES[f"{name}/S"], rtol=1e-5)
    np.testing.assert_allclose(found.null.max(axis=(1, 2)), NULLS[f"{name}/max/null"], rtol=1e-5)
    np.testing.assert_allclose(found.null.mean(axis=(1, 2)), NULLS[f"{name}/mean/null"], rtol=1e-5)
    maximum = found.maximum
    values = [maximum.score, maximum.calibrated, maximum.p, maximum.threshold]
    np.testing.assert_allclose(values, VALUES[f"{name}/max"], rtol=1e-5)
    assert found.scores[found.best] == np.float32(maximum.score)


@pytest.mark.parametrize("other", ["ab", "ac"])
def test_one_pair_against_the_released_calibration(other):
    fields = [str(field) for field in VALUES["calib/registry/fields"]]
    for key in ("mutual_knn_k10", "cka_linear"):
        found = compare_layers(RELEASED[key], [A], [{"ab": B, "ac": C}[other]], permutations=PERMUTATIONS)
        released = dict(zip(fields, VALUES[f"calib/registry/{key}/{other}"], strict=True))
        np.testing.assert_allclose(
            found.null[:, 0, 0], NULLS[f"calib/registry/{key}/{other}/null"], rtol=1e-5
        )
        np.testing.assert_allclose(found.maximum.null_mean, released["mean_null"], rtol=1e-5)
        np.testing.assert_allclose(found.maximum.z, released["z"], rtol=1e-4)
        np.testing.assert_allclose(found.maximum.threshold, released["tau"], rtol=1e-5)
        # The library compares tied scores as float32 means; whole counts tie.
        p = VALUES[f"own/calib_p_integer_counts_{key}/{other}"] if "knn" in key else released["pvalue"]
        np.testing.assert_allclose(found.maximum.p, p, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mutual_knn", {"k": 2}),
        ("cka", {}),
        ("cka", {"form": "platonic"}),
        ("cka", {"kernel": "rbf", "sigma": 5.0}),
        ("cka", {"unbiased": True}),
    ],
)
@pytest.mark.parametrize("dense", [True, False])
def test_exact_means_by_enumeration(name, settings, dense):
    """Over all 720 orders of 6 samples, with the matrix kept and with blocks."""
    if name == "cka" and not dense:
        settings = {**settings, "dense": 0}
    one, a, b = measure(name, **settings), A[:6], C[:6]
    every = np.array(list(itertools.permutations(range(6))), np.int32)
    null = compare_layers(one, [a], [b], permutations=every).null
    assert abs(np.mean(null, dtype=np.float64) - float(one.by_chance(a, b))) < 1e-6


def test_chance_levels_have_their_formulas():
    assert float(measure("mutual_knn", k=10).by_chance(A, B)) == np.float32(10 / 199)
    ratios = []
    for x in (A, B):
        x = x.astype(np.float64) - x.astype(np.float64).mean(0)
        spectrum = np.linalg.eigvalsh(x.T @ x)
        ratios.append(spectrum.sum() ** 2 / np.square(spectrum).sum())
    np.testing.assert_allclose(measure("cka").by_chance(A, B), np.sqrt(np.prod(ratios)) / 199, rtol=1e-5)
    assert measure("cka", unbiased=True).by_chance(A, B) == 0
    assert measure("cknna").by_chance(A, B) is None


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mutual_knn", {}),
        ("cka", {"unbiased": True, "form": "platonic"}),
        pytest.param("cka", {}, marks=pytest.mark.slow),
        pytest.param("rsa", {}, marks=pytest.mark.slow),
    ],
)
def test_all_layers_at_once_equal_one_pair_at_a_time(name, settings, monkeypatch):
    one = measure(name, **settings)
    monkeypatch.setattr(neighbors, "BLOCK", 2 * 77 * 200)
    jax.clear_caches()
    layers_a, layers_b = [A, A[:, :20], A[:, 5:9]] * 11 + [A[:, 7:]], [B, C]
    layers_a = layers_a[:34] if name == "mutual_knn" else layers_a[:3]
    at_once = compare_layers(one, layers_a, layers_b, permutations=PERMUTATIONS[:3])
    alone = one._replace(table=None)
    for i in {0, len(layers_a) - 1}:
        pair = compare_layers(alone, [layers_a[i]], layers_b, permutations=PERMUTATIONS[:3])
        np.testing.assert_allclose(at_once.null[:, [i]], pair.null, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(at_once.scores[[i]], pair.scores, rtol=1e-5, atol=1e-6)


def rejections(one, draw, pairs, count, n):
    """The share of pairs from `draw(key)` with p ≤ 0.05, by the maximum over layers."""

    @jax.jit
    def p_value(key):
        key, own = jax.random.split(key)
        a, b = (jax.tree.map(lambda *x: jnp.stack(x), *map(one.prepare, layers)) for layers in draw(key))
        orders = jax.vmap(lambda key: jax.random.permutation(key, n))(jax.random.split(own, count))
        highest = one.table(a, b, jnp.concatenate([jnp.arange(n)[None], orders])).max((1, 2))
        return highest

    found = [np.asarray(p_value(key)) for key in jax.random.split(jax.random.key(0), pairs)]
    return np.mean([p_values(highest[0], highest[1:]) <= 0.05 for highest in found])


def test_a_true_null_is_rejected_at_its_level():
    """1,000 pairs of unrelated features, linear CKA, K = 199: 5 ± 2 % are below 0.05."""

    def draw(key):
        first, second = jax.random.split(key)
        return [jax.random.normal(first, (20, 5))], [jax.random.normal(second, (20, 7))]

    assert 0.03 <= rejections(measure("cka"), draw, 1000, 199, 20) <= 0.07


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mutual_knn", "cka"])
def test_networks_on_unrelated_inputs(name):
    """200 pairs of untrained networks, each fed its own random inputs: the maximum over 12 × 12 layers rejects 2 to 9 %."""

    def layers(key, width, n=64):
        found, x = [], jax.random.normal(key, (n, 16))
        for i in range(12):
            weights = jax.random.normal(jax.random.fold_in(key, i), (x.shape[1], width))
            x = jnp.tanh(1.3 * x @ weights / x.shape[1] ** 0.5)
            found.append(x)
        return found

    def draw(key):
        first, second = jax.random.split(key)
        return layers(first, 24), layers(second, 40)

    assert 0.02 <= rejections(measure(name), draw, 200, 199, 64) <= 0.09


@pytest.mark.slow
def test_an_interval_covers():
    """95 % intervals of unbiased CKA against its value on 4,000 samples: of 40 at least 33 cover."""
    one = measure("cka", unbiased=True)
    generator = np.random.default_rng(0)
    mix = generator.standard_normal((4, 6))

    def sample(n):
        x = generator.standard_normal((n, 4))
        return x.astype(np.float32), (x @ mix + 2 * generator.standard_normal((n, 6))).astype(np.float32)

    truth = float(one(*sample(4000)))
    covered = 0
    for seed in range(40):
        a, b = sample(64)
        low, high = interval(one, [a], [b], resamples=60, seed=seed)
        covered += low <= truth <= high
        assert low < high
    assert covered >= 33


def test_calibrate():
    found = calibrate(0.9, np.linspace(0, 0.5, 99), alpha=0.05)
    assert found.p == 0.01
    np.testing.assert_allclose(found.threshold, np.linspace(0, 0.5, 99)[94])
    np.testing.assert_allclose(found.calibrated, (0.9 - found.threshold) / (1 - found.threshold))
    assert calibrate(0.2, np.full(19, 0.2)).p == 1.0  # Ties count against the score.
    assert calibrate(0.1, np.linspace(0, 0.5, 99)).calibrated == 0
    assert calibrate(1.0, [1.0, 1.0]).calibrated == 0  # No room above the threshold.


def test_permutations_are_a_function_of_their_seed():
    first = permutations(30, 5, seed=1)
    np.testing.assert_array_equal(first, permutations(30, 9, seed=1)[:5])
    assert (np.sort(first, axis=1) == np.arange(30)).all()
    assert (first != permutations(30, 5, seed=2)).any()


BAD = {
    "no layers": (lambda: score_table(measure("cka"), [], [B]), "a: no layers"),
    "rows": (lambda: score_table(measure("cka"), [A, A[:9]], [B]), "layers of 9, 200 rows were given"),
    "a layer of NaN": (
        lambda: score_table(measure("cka"), [A, np.full_like(A, np.nan)], [B]),
        "layer 1 of a: NaN",
    ),
    "k": (lambda: score_table(measure("mutual_knn", k=200), [A], [B]), "k: 200 was given for 200 rows"),
    "permutations": (lambda: compare_layers(measure("cka"), [A], [B], permutations=0), "permutations: 0 was"),
    "not an order": (
        lambda: compare_layers(measure("cka"), [A], [B], permutations=np.zeros((2, 200), int)),
        "orders of the samples are accepted",
    ),
    "alpha": (lambda: calibrate(0.1, [0.2], alpha=1.0), "alpha: 1.0 was given"),
    "empty": (lambda: calibrate(0.1, []), "null: 0 scores were given"),
    "level": (lambda: interval(measure("cka"), [A], [B], level=1.0), "level, resamples: 1.0, 200 were given"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case):
    call, message = BAD[case]
    with pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value) and "\n" not in str(caught.value)
