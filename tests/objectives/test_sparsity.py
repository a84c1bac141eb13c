"""Proximal steps: what they compute, and that they descend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crate_jax import objectives

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 6)).astype(np.float32)
WIDE = RNG.normal(size=(6, 10)).astype(np.float32)
STEP = 1 / np.linalg.norm(WIDE, 2) ** 2


def test_counts_and_norms():
    z = np.array([[[0, 1.0], [0, -2]], [[3, 4], [0, 0]]], np.float32)
    np.testing.assert_allclose(objectives.nonzero_fraction(z), [0.5, 0.5])
    np.testing.assert_allclose(objectives.nonzero_fraction(z, mask=np.array([1, 0])), [0.5, 1.0])
    np.testing.assert_allclose(objectives.l1_norm(z), [3, 7])
    np.testing.assert_allclose(objectives.hoyer(z)[1, 0], (2**0.5 - 7 / 5) / (2**0.5 - 1), rtol=1e-6)
    tiny_and_huge = objectives.hoyer(np.array([[1e-30, 1e-30], [1e30, 0]], np.float32))
    np.testing.assert_allclose(tiny_and_huge, [0, 1], atol=1e-6)
    assert objectives.hoyer(np.zeros(3, np.float32)) == 1
    assert np.all(np.isfinite(jax.grad(lambda z: objectives.hoyer(z).sum())(np.zeros((2, 3), np.float32))))


def test_soft_threshold_is_the_proximal_operator():
    grid = np.linspace(-4, 4, 4001)
    for value in (-2.5, -0.3, 0.0, 0.7, 3.0):
        for nonnegative in (False, True):
            allowed = grid[grid >= 0] if nonnegative else grid
            best = allowed[np.argmin(0.5 * (allowed - value) ** 2 + np.abs(allowed))]
            ours = objectives.soft_threshold(jnp.float32(value), 1.0, nonnegative=nonnegative)
            np.testing.assert_allclose(ours, best, atol=2e-3)


def test_one_matmul_step_equals_the_released_three():
    weight = RNG.normal(size=(6, 6)).astype(np.float32)
    z = np.abs(X)
    projected = z @ weight.T  # F.linear(x, W)
    ascent = z @ weight - projected @ weight  # F.linear(x, Wᵀ) − F.linear(F.linear(x, W), Wᵀ)
    three = np.maximum(z + 0.1 * ascent - 0.1 * 0.1, 0)
    one = objectives.ista_step(z, weight, step_size=0.1, penalty=0.1)
    np.testing.assert_allclose(one, three, atol=1e-5)
    explicit = objectives.ista_step(z, weight, step_size=0.1, penalty=0.1, target=z)
    np.testing.assert_allclose(explicit, three, atol=1e-5)


def test_bfloat16_step_rounds_like_bfloat16():
    z, weight = jnp.asarray(X, jnp.bfloat16), jnp.eye(6) + 0.1 * jnp.asarray(WIDE[:, :6])
    low = objectives.ista_step(z, weight, step_size=0.1, penalty=0.1)
    high = objectives.ista_step(z.astype(jnp.float32), weight, step_size=0.1, penalty=0.1)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), high, rtol=2**-7, atol=2**-7)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0, 2), st.floats(0.05, 1))
def test_a_step_never_increases_the_lasso(seed, penalty, fraction):
    rng = np.random.default_rng(seed)
    x, d, z = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 6), (6, 10), (5, 10)))
    step = fraction / np.linalg.norm(d, 2) ** 2
    for start, nonnegative in ((z, False), (np.abs(z), True)):
        after = objectives.ista_step(
            start, d, step_size=step, penalty=penalty, target=x, nonnegative=nonnegative
        )
        before, later = (float(objectives.lasso(code, d, x, penalty=penalty)) for code in (start, after))
        assert later <= before * (1 + 1e-6)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_unrolled_solvers(nonnegative):
    given = dict(step_size=STEP, penalty=0.1, nonnegative=nonnegative)
    codes = np.zeros((5, 10), np.float32)
    for _ in range(3):
        codes = objectives.ista_step(codes, WIDE, target=X, **given)
    np.testing.assert_allclose(objectives.ista(X, WIDE, steps=3, **given), codes, atol=1e-6)
    np.testing.assert_allclose(
        objectives.fista(X, WIDE, steps=1, **given), objectives.ista(X, WIDE, steps=1, **given)
    )
    gap = {}
    best = float(objectives.lasso(objectives.fista(X, WIDE, steps=5000, **given), WIDE, X, penalty=0.1))
    for solve in (objectives.ista, objectives.fista):
        gap[solve] = float(objectives.lasso(solve(X, WIDE, steps=60, **given), WIDE, X, penalty=0.1)) - best
    assert 0 <= gap[objectives.fista] + 1e-5 < 0.5 * gap[objectives.ista]
    assert not nonnegative or np.all(codes >= 0)


def test_overcomplete_block_is_two_steps_from_zero():
    first = np.maximum(0.1 * X @ WIDE - 0.01, 0)
    second = np.maximum(first + 0.1 * (X @ WIDE - first @ WIDE.T @ WIDE) - 0.01, 0)
    decoder = RNG.normal(size=(6, 10)).astype(np.float32)
    np.testing.assert_allclose(
        objectives.overcomplete_block(X, WIDE, decoder), second @ decoder.T, rtol=1e-4, atol=1e-4
    )


def test_solvers_under_transformations():
    def loss(d):
        return objectives.lasso(
            objectives.ista(X, d, steps=4, step_size=STEP, penalty=0.1), d, X, penalty=0.1
        )

    direction = RNG.normal(size=WIDE.shape).astype(np.float32)
    numeric = (loss(WIDE + 1e-2 * direction) - loss(WIDE - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(WIDE), direction), numeric, rtol=2e-2)
    batch = jnp.stack([X, 2 * X])
    given = dict(steps=4, step_size=STEP, penalty=0.1)
    np.testing.assert_allclose(
        jax.vmap(lambda x: objectives.ista(x, WIDE, **given))(batch),
        objectives.ista(batch, WIDE, **given),
        atol=1e-6,
    )
