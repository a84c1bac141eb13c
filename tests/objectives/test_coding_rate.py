"""Coding rates against float64 over scales, ranks and shapes; masks, dtypes, derivatives."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from conftest import slow_but
from hypothesis import given, settings
from hypothesis import strategies as st

from crate_jax import objectives

SCALES = np.array([1e-6, 1e-4, 1e-2, 1.0, 30.0, 1e3, 1e4, 1e6, 1e15, 1e25])
SHAPES = ((50, 20), (8, 40), (200, 8))
EPS_SQ = 0.1


def family(kind, n, d):
    return np.stack([scale * oracles.tokens(kind, n, d) for scale in SCALES]).astype(np.float32)


@pytest.mark.parametrize(("n", "d"), slow_but(SHAPES, SHAPES[0]))
@pytest.mark.parametrize("kind", oracles.KINDS)
def test_rate_is_right_at_every_scale_and_rank(kind, n, d):
    z = family(kind, n, d)
    # One sample at a time, so that each chooses its own path.
    rates = np.array([objectives.coding_rate(sample, eps_sq=EPS_SQ) for sample in z])
    np.testing.assert_allclose(rates, oracles.coding_rate(z, EPS_SQ), rtol=1e-4, atol=0)
    # As one batch, the hardest sample decides for all.
    rates = objectives.coding_rate(z, eps_sq=EPS_SQ)
    np.testing.assert_allclose(rates, oracles.coding_rate(z, EPS_SQ), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("kind", oracles.KINDS)
def test_gradient_is_right(kind, n, d):
    gradient = jax.jit(jax.grad(lambda z: objectives.coding_rate(z, eps_sq=EPS_SQ)))
    for sample, scale in zip(family(kind, n, d), SCALES, strict=True):
        expected = oracles.coding_rate_gradient(sample, EPS_SQ)
        error = np.linalg.norm(np.asarray(gradient(sample), np.float64) - expected)
        assert error <= 1e-4 * np.linalg.norm(expected), (scale, error)


@pytest.mark.parametrize("kind", oracles.KINDS)
def test_subspace_rate_is_right_at_every_scale_and_rank(kind):
    z = family(kind, 40, 24)
    bases = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 24, 6)))[0].astype(np.float32)
    rates = [objectives.subspace_coding_rate(sample, bases, eps_sq=EPS_SQ) for sample in z]
    np.testing.assert_allclose(rates, oracles.subspace_coding_rate(z, bases, EPS_SQ), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", oracles.KINDS)
def test_gradient_of_the_subspace_rate_is_right(kind):
    bases = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 24, 6)))[0].astype(np.float32)
    gradient = jax.jit(jax.grad(lambda z: objectives.subspace_coding_rate(z, bases, eps_sq=EPS_SQ)))
    for sample, scale in zip(family(kind, 40, 24), SCALES, strict=True):
        expected = 0
        for basis in np.float64(bases):
            expected = expected + oracles.coding_rate_gradient(sample @ basis, EPS_SQ) @ basis.T
        error = np.linalg.norm(np.asarray(gradient(sample), np.float64) - expected)
        assert error <= 1e-3 * np.linalg.norm(expected), (scale, error)


@pytest.mark.parametrize("kind", oracles.KINDS)
def test_class_rate_is_right_at_every_scale_and_rank(kind):
    z = family(kind, 40, 16)
    labels = np.random.default_rng(2).integers(0, 3, 40)
    one_hot = np.eye(4, dtype=np.float32)[labels]  # the fourth class is empty
    expected = np.array([oracles.class_coding_rate(sample, one_hot, EPS_SQ) for sample in z])
    for membership in (labels, one_hot):
        rates = [objectives.class_coding_rate(sample, membership, eps_sq=EPS_SQ) for sample in z]
        np.testing.assert_allclose(rates, expected, rtol=1e-4, atol=0)


def test_soft_membership():
    z = oracles.tokens("full rank", 30, 8)
    soft = np.random.default_rng(0).dirichlet(np.ones(5), 30).astype(np.float32)
    for scale in (1e-4, 1.0, 1e3):
        rate = objectives.class_coding_rate((scale * z).astype(np.float32), soft, eps_sq=0.5)
        np.testing.assert_allclose(rate, oracles.class_coding_rate(scale * z, soft, 0.5), rtol=1e-4)


@pytest.mark.slow
def test_masks_equal_dropping_the_padding():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 10, 6)).astype(np.float32)
    padded = z.copy()
    padded[:, 7:] = np.nan
    mask = np.arange(10) < 7
    bases = rng.normal(size=(2, 6, 3)).astype(np.float32)
    labels = rng.integers(0, 3, (2, 10))
    functions = (
        lambda z, **k: objectives.coding_rate(z, eps_sq=0.1, **k),
        lambda z, **k: objectives.subspace_coding_rate(z, bases, eps_sq=0.1, **k),
        lambda z, **k: objectives.nonzero_fraction(z * (z > 0), **k),
    )
    for function in functions:
        np.testing.assert_allclose(function(padded, mask=mask), function(z[:, :7]), rtol=1e-6)
        assert np.all(np.isfinite(jax.grad(lambda z, f=function: f(z, mask=mask).sum())(padded)))
    for membership in (labels, np.eye(3, dtype=np.float32)[labels]):
        masked = objectives.rate_reduction(padded, membership, eps_sq=0.1, mask=mask)
        dropped = objectives.rate_reduction(z[:, :7], membership[:, :7], eps_sq=0.1)
        np.testing.assert_allclose(masked, dropped, rtol=1e-5)
    assert objectives.coding_rate(padded[0], eps_sq=0.1, mask=np.zeros(10)) == 0


def test_bfloat16_inputs_give_fp32_rates():
    z = jnp.asarray(oracles.tokens("full rank", 20, 8), jnp.bfloat16)
    rate = objectives.coding_rate(z, eps_sq=0.1)
    assert rate.dtype == jnp.float32
    np.testing.assert_allclose(rate, oracles.coding_rate(np.asarray(z, np.float64), 0.1), rtol=1e-6)


def test_released_metric_matches_the_released_code():
    path = pathlib.Path(__file__).parents[1] / "fixtures" / "coding_rate_official.npz"
    with np.load(path) as reference:
        mean, std = objectives.mean_and_std(objectives.released_coding_rate(reference["x_bhnd"]))
        np.testing.assert_allclose(mean, reference["mean"], rtol=1e-5)
        np.testing.assert_allclose(std, reference["std"], rtol=1e-5)


def test_released_metric_goes_through_many_matrices_in_pieces():
    z = np.random.default_rng(0).normal(size=(2, 37, 4096, 8)).astype(np.float32)
    unit = z / np.linalg.norm(z.astype(np.float64), axis=-1, keepdims=True)
    np.testing.assert_allclose(
        objectives.released_coding_rate(z), oracles.coding_rate(unit, 0.01).sum(-1), rtol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p"), [(9, 4), (4, 9)])
def test_derivatives_of_the_released_metric(n, p):
    z = jax.random.normal(jax.random.key(0), (2, 3, n, p))

    def plain(z, eps_sq):
        unit = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
        return jnp.sum(jax.vmap(jax.vmap(naive, (0, None)), (0, None))(unit, p / (n * eps_sq)))

    def ours(z, eps_sq):
        return jnp.sum(objectives.released_coding_rate(z, eps_sq=eps_sq))

    gradients = [jax.jit(jax.grad(f, (0, 1)))(z, 0.1) for f in (ours, plain)]
    for mine, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
    second = [
        jax.jit(jax.jvp, static_argnums=0)(jax.grad(f), (z, 0.1), (z**2, 0.0))[1] for f in (ours, plain)
    ]
    np.testing.assert_allclose(*second, rtol=1e-4, atol=1e-4)
    mapped = jax.vmap(lambda z: objectives.released_coding_rate(z, eps_sq=0.1))(z)
    np.testing.assert_allclose(mapped, objectives.released_coding_rate(z, eps_sq=0.1), rtol=1e-6)


def test_released_metric_of_degenerate_tokens():
    zero = jnp.zeros((2, 5, 4))
    assert objectives.released_coding_rate(zero) == 0
    assert np.all(np.isfinite(jax.grad(objectives.released_coding_rate)(zero)))
    low = oracles.tokens("rank 3", 197, 64)
    unit = low / np.linalg.norm(low, axis=-1, keepdims=True)
    expected = oracles.coding_rate(unit, 0.01)
    for scale in (1e-4, 1.0, 1e6):
        rate = objectives.released_coding_rate((scale * low[None]).astype(np.float32))
        np.testing.assert_allclose(rate, expected, rtol=1e-4)
    equal = np.tile(unit[:1], (197, 1)).astype(np.float32)
    expected = oracles.coding_rate(equal, 0.01)
    np.testing.assert_allclose(objectives.released_coding_rate(equal[None]), expected, rtol=1e-5)
    for scale in (1e-30, 1e25):
        rate = objectives.released_coding_rate((scale * low[None]).astype(np.float32))
        np.testing.assert_allclose(rate, oracles.coding_rate(unit, 0.01), rtol=1e-4)


small = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31 - 1), st.floats(-3, 3))


def draw(shape_and_seed):
    n, d, seed, magnitude = shape_and_seed
    rng = np.random.default_rng(seed)
    # Drawn into a fixed 9 × 9 frame: zero rows and columns change neither trace nor compile anything anew.
    z = np.zeros((9, 9), np.float32)
    z[:n, :d] = 10**magnitude * rng.normal(size=(n, d))
    return rng, z


@settings(max_examples=25, deadline=None)
@given(small)
def test_rotations_permutations_and_eps(shape_and_seed):
    rng, z = draw(shape_and_seed)
    rate = float(objectives.coding_rate(z, eps_sq=0.1))
    rotation = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    rotated = objectives.coding_rate((z.astype(np.float64) @ rotation).astype(np.float32), eps_sq=0.1)
    np.testing.assert_allclose(rotated, rate, rtol=1e-3)  # the rotation itself is rounded to fp32
    permuted = z[rng.permutation(9)][:, rng.permutation(9)]
    np.testing.assert_allclose(objectives.coding_rate(permuted, eps_sq=0.1), rate, rtol=1e-5)
    assert rate >= 0
    assert objectives.coding_rate(z, eps_sq=0.2) <= rate


@settings(max_examples=25, deadline=None)
@given(small)
def test_class_rates_reduce(shape_and_seed):
    rng, z = draw(shape_and_seed)
    labels = rng.integers(0, 3, 9)
    rate = float(objectives.coding_rate(z, eps_sq=0.5))
    assert objectives.rate_reduction(z, labels, eps_sq=0.5) >= -1e-6 * rate
    soft = rng.dirichlet(np.ones(4), 9).astype(np.float32)
    assert objectives.rate_reduction(z, soft, eps_sq=0.5) >= -1e-6 * rate


@settings(max_examples=15, deadline=None)
@given(small)
def test_subspaces(shape_and_seed):
    rng, z = draw(shape_and_seed)
    q = np.linalg.qr(rng.normal(size=(9, 9)))[0].astype(np.float32)
    # Tokens in the span of one basis: R^c is the rate of their coordinates.
    coordinates = z[:, :3]
    spanned = np.float32(coordinates.astype(np.float64) @ q[:, :3].T.astype(np.float64))
    whole = objectives.coding_rate(coordinates, eps_sq=0.3)
    np.testing.assert_allclose(
        objectives.subspace_coding_rate(spanned, q[None, :, :3], eps_sq=0.3), whole, rtol=2e-3
    )
    # Orthogonal subspaces, n and d in common: rates add up.
    both = np.zeros((18, 9), np.float32)
    both[:9, :4], both[9:, 4:] = z[:, :4], z[:, 4:]
    parts = [np.where(np.arange(9) < 4, both, 0), np.where(np.arange(9) >= 4, both, 0)]
    total = sum(float(objectives.coding_rate(part, eps_sq=0.3)) for part in parts)
    np.testing.assert_allclose(objectives.coding_rate(both, eps_sq=0.3), total, rtol=1e-5)


def naive(z, alpha):
    return 0.5 * jnp.linalg.slogdet(jnp.eye(z.shape[-1]) + alpha * z.T @ z)[1]


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d"), [(9, 4), (4, 9)])
def test_closed_form_derivatives_equal_autodiff(n, d):
    z = jax.random.normal(jax.random.key(0), (n, d))
    alpha = d / (n * 0.2)
    ours, plain = lambda z: objectives.coding_rate(z, eps_sq=0.2), lambda z: naive(z, alpha)
    np.testing.assert_allclose(ours(z), plain(z), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(ours)(z), jax.grad(plain)(z), atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.hessian(ours))(z), jax.jit(jax.hessian(plain))(z), atol=1e-4)
    np.testing.assert_allclose(
        jax.grad(lambda e: objectives.coding_rate(z, eps_sq=e))(0.2),
        jax.grad(lambda e: naive(z, d / (n * e)))(0.2),
        rtol=1e-4,
    )


@pytest.mark.slow
def test_derivatives_of_the_other_rates():
    keys = jax.random.split(jax.random.key(1), 3)
    z, bases = jax.random.normal(keys[0], (9, 4)), jax.random.normal(keys[1], (2, 4, 3))
    labels = jax.random.randint(keys[2], (9,), 0, 3)

    def plain_subspaces(z, bases):
        return sum(naive(z @ u, 3 / (9 * 0.2)) for u in bases)

    def plain_classes(z):
        counts = [jnp.sum(labels == c) for c in range(3)]
        return sum(
            count / 9 * naive(z * (labels == c)[:, None], 4 / (jnp.maximum(count, 1) * 0.2))
            for c, count in enumerate(counts)
        )

    def ours(z, bases):
        return objectives.subspace_coding_rate(z, bases, eps_sq=0.2)

    for mine, other in zip(
        jax.grad(ours, (0, 1))(z, bases), jax.grad(plain_subspaces, (0, 1))(z, bases), strict=True
    ):
        np.testing.assert_allclose(mine, other, atol=1e-5)
    second = [jax.jit(jax.hessian(f, 1))(z, bases) for f in (ours, plain_subspaces)]
    np.testing.assert_allclose(*second, atol=1e-4)
    for membership in (labels, jax.nn.one_hot(labels, 3)):

        def classes(z, membership=membership):
            return objectives.class_coding_rate(z, membership, eps_sq=0.2)

        np.testing.assert_allclose(jax.grad(classes)(z), jax.grad(plain_classes)(z), atol=1e-5)
    np.testing.assert_allclose(
        jax.jit(jax.hessian(lambda z: objectives.class_coding_rate(z, labels, eps_sq=0.2)))(z),
        jax.jit(jax.hessian(plain_classes))(z),
        atol=1e-4,
    )


@pytest.mark.slow
def test_vmap_scan_and_leading_axes():
    z = jax.random.normal(jax.random.key(0), (2, 3, 9, 4))
    bases = jax.random.normal(jax.random.key(1), (2, 2, 4, 3))

    def rate(z):
        return objectives.subspace_coding_rate(z, bases[0], eps_sq=0.2)

    whole = rate(z)
    np.testing.assert_allclose(jax.vmap(jax.vmap(rate))(z), whole, rtol=1e-6)
    np.testing.assert_allclose(jax.lax.scan(lambda c, x: (c, rate(x)), 0, z)[1], whole, rtol=1e-6)
    over_bases = jax.vmap(lambda u: objectives.subspace_coding_rate(z, u, eps_sq=0.2))(bases)
    np.testing.assert_allclose(over_bases[0], whole, rtol=1e-6)
    np.testing.assert_allclose(
        jax.vmap(jax.grad(lambda x: rate(x).sum()))(z), jax.grad(lambda x: rate(x).sum())(z), atol=1e-6
    )
