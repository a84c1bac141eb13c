"""Which way a log-determinant goes and how far each is right; extreme scales; tokens of trained networks."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from conftest import slow_but

from crate_jax import objectives
from crate_jax.objectives import logdet, powers, twofloat


def operands(z, eps_sq, bases=None):
    """What `half_logdet` makes of tokens, as columns too."""
    n, d = z.shape[-2:]
    size = d if bases is None else bases.shape[-1]
    alpha = powers.quotient(size, jnp.full((*z.shape[:-2], 1), n, jnp.float32), eps_sq)
    given = logdet.normalised(logdet.Operands(jnp.asarray(z), alpha, bases))
    return given, logdet._columns(given)


def without_orthogonalisation(monkeypatch):
    """What would go there comes back as nan."""

    def failing(hi, lo, a, k, least, within=None):
        m = hi.shape[-1]
        shape = (*hi.shape[:-2], m, m)
        return jnp.full(shape, jnp.nan), jnp.full(hi.shape, jnp.nan), jnp.zeros((*shape[:-2], m), bool)

    monkeypatch.setattr(twofloat, "orthogonalise", failing)
    jax.clear_caches()


@pytest.fixture
def cheap(monkeypatch):
    without_orthogonalisation(monkeypatch)
    yield
    jax.clear_caches()


@pytest.mark.parametrize(("n", "d"), slow_but([(65, 96), (5, 96), (197, 64)], (65, 96)))
@pytest.mark.parametrize("eps_sq", slow_but([0.01, 0.5], 0.01))
def test_tokens_of_a_trained_network_need_no_orthogonalisation(cheap, n, d, eps_sq):
    z = np.stack([oracles.tokens("trained", n, d, seed) for seed in range(2)]).astype(np.float32)
    bases = np.linalg.qr(np.random.default_rng(1).normal(size=(4, d, d)))[0][:, :, : d // 4].astype(
        np.float32
    )
    _, _, trusted, _ = logdet._cholesky(True, operands(z, eps_sq)[1], None)
    assert n == 5 or not np.all(trusted)  # one Cholesky factorisation is not enough for them
    value, slope = jax.value_and_grad(lambda z: objectives.coding_rate(z, eps_sq=eps_sq).sum())(z)
    np.testing.assert_allclose(value, oracles.coding_rate(z, eps_sq).sum(), rtol=1e-5)
    for mine, sample in zip(slope, z, strict=True):
        expected = oracles.coding_rate_gradient(sample, eps_sq)
        assert np.linalg.norm(mine - expected) <= 3e-4 * np.linalg.norm(expected)
    rate = lambda z: objectives.subspace_coding_rate(z, bases, eps_sq=eps_sq).sum()  # noqa: E731
    value, slope = jax.value_and_grad(rate)(z)
    np.testing.assert_allclose(value, oracles.subspace_coding_rate(z, bases, eps_sq).sum(), rtol=1e-5)
    assert np.all(np.isfinite(slope))


def test_spread_tokens_stay_with_one_cholesky():
    z = oracles.tokens("full rank", 197, 32)[None].astype(np.float32)
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    for ratio, tokens, eps_sq in ((True, z, 0.5), (False, unit, 0.01), (True, unit, 0.01)):
        assert np.all(logdet._cholesky(ratio, operands(tokens, eps_sq)[1], None)[2])


@pytest.mark.slow
@pytest.mark.parametrize("kind", oracles.KINDS)
def test_the_bounds_promise_what_they_say(kind):
    """Where Cholesky or Cholesky twice calls itself right, it is: 1e-4 of the value, 1e-3 of the gradient."""
    promised = 0
    for n, d in ((50, 20), (8, 40), (200, 8)):
        for scale in (0.1, 1.0, 10.0, 100.0, 1e3, 1e4):
            z = (scale * oracles.tokens(kind, n, d)).astype(np.float32)
            given, columns = operands(z, 0.1)
            value, x, once, factor = logdet._cholesky(True, columns, None)
            results = [(value, x, once)]
            if kind != "zero":
                results.append(logdet._cholesky_twice(True, columns, given, factor))
            expected, slope = oracles.coding_rate(z, 0.1), oracles.coding_rate_gradient(z, 0.1)
            height = float(powers.largest_exponent(jnp.asarray(z), (-2, -1))[0, 0])
            for value, x, trusted in results:
                if not trusted:
                    continue
                promised += 1
                mine = powers.shift(columns.a[..., None, :] * x, columns.power[..., None, :])
                mine = np.float64(mine if d <= n else mine.T) * 2.0**-height
                np.testing.assert_allclose(value, expected, rtol=1e-4)
                assert np.linalg.norm(mine - slope) <= 1e-3 * np.linalg.norm(slope), (n, d, scale)
    assert promised


def test_a_sample_does_not_depend_on_its_batch():
    samples = [oracles.tokens(kind, 20, 8) for kind in ("full rank", "trained", "rank 3")]
    z = np.stack([1e-5 * samples[0], samples[1], 1e4 * samples[2]]).astype(np.float32)
    together = objectives.coding_rate(z, eps_sq=0.1)
    alone = [objectives.coding_rate(sample, eps_sq=0.1) for sample in z]
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_orthogonalisation_keeps_twice_the_digits():
    z = jnp.asarray(oracles.tokens("equal tokens", 30, 8).astype(np.float32))
    k = jnp.full(8, 13.0)
    v, w, depends = twofloat.orthogonalise(z, jnp.zeros_like(z), jnp.ones((1,)), k, k)
    v, w = np.asarray(v, np.float64), np.asarray(w, np.float64)
    np.testing.assert_array_equal(np.tril(v), np.eye(8))
    gram = 4.0**-13 * v.T @ v + w.T @ w
    scale = np.sqrt(np.diag(gram))
    assert np.abs(gram / np.outer(scale, scale) - np.eye(8)).max() < 1e-5
    assert not np.any(depends)


def test_products_of_pairs():
    rng = np.random.default_rng(0)
    for m in (5, 1500):
        x, y = (rng.normal(size=(4, m)).astype(np.float32) for _ in range(2))
        wanted = np.float64(x) @ np.float64(y).T
        for product, digits in ((twofloat.product, 29), (twofloat.product_exactly, 38)):
            hi, lo = (np.asarray(part, np.float64) for part in product(jnp.asarray(x), jnp.asarray(y)))
            assert np.abs(hi + lo - wanted).max() <= 2.0**-digits * m * np.abs(x).max() * np.abs(y).max()
    x, y = (jnp.asarray(rng.normal(size=100), jnp.float32) for _ in range(2))
    hi, lo = twofloat.times(x, y)
    exact = np.float64(x) * np.float64(y)
    assert np.abs(np.float64(hi) + np.float64(lo) - exact).max() <= 2.0**-44
    hi, lo = twofloat.divide(x, twofloat.times(y, y))
    ratio = np.float64(x) / np.float64(y) ** 2
    assert np.abs((np.float64(hi) + np.float64(lo)) / ratio - 1).max() <= 2.0**-42


@pytest.mark.parametrize("eps_sq", [1e-40, 1e-30, 1e-10, 1e10, 1e30])
def test_extreme_distortions(eps_sq):
    for kind, scale in (("full rank", 1.0), ("rank 3", 1e10), ("equal tokens", 1e20)):
        z = (scale * oracles.tokens(kind, 12, 5)).astype(np.float32)
        expected = oracles.coding_rate(z, eps_sq)
        for given in (eps_sq, np.float64(eps_sq), jnp.float32(eps_sq)):
            np.testing.assert_allclose(objectives.coding_rate(z, eps_sq=given), expected, rtol=1e-4)
        traced = jax.jit(lambda z, e: objectives.coding_rate(z, eps_sq=e))(z, np.float32(eps_sq))
        np.testing.assert_allclose(traced, expected, rtol=1e-4)
        if expected > 1e-30:
            slope = np.asarray(jax.grad(lambda z: objectives.coding_rate(z, eps_sq=eps_sq))(z), np.float64)
            wanted = oracles.coding_rate_gradient(z, eps_sq)
            assert np.linalg.norm(slope - wanted) <= 1e-3 * np.linalg.norm(wanted)


def test_numbers_as_mantissa_and_power():
    for x in (1.0, 3.999, 1e-45, 1e-39, 1.1754944e-38, 3.4e38, 0.1):
        for value in (x, jnp.float32(x)):
            mantissa, power = powers.split(value)
            assert 1 <= mantissa < 2
            np.testing.assert_allclose(
                np.float64(mantissa) * 2.0 ** float(power), np.float64(value), rtol=1e-6
            )
    scale = powers.quotient(7, 3.0, 1e-40)
    assert 1 <= scale.mantissa < 4
    np.testing.assert_allclose(
        np.log(float(scale.mantissa)) + float(scale.power) * np.log(4), np.log(7 / 3e-40)
    )
    slope = jax.grad(lambda x: powers.quotient(7, x).mantissa * 4.0 ** float(powers.quotient(7, 3.0).power))(
        3.0
    )
    np.testing.assert_allclose(slope, -7 / 9, rtol=1e-6)
