"""The compression steps against each other and autodiff; denoising against the density behind it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import objectives

RNG = np.random.default_rng(0)
ORTHONORMAL = np.linalg.qr(RNG.normal(size=(24, 24)))[0].astype(np.float32)
BASES = ORTHONORMAL.reshape(24, 4, 6).transpose(1, 0, 2)  # U Uᵀ = I over the four together
OUTPUT = RNG.normal(size=(4, 6, 24)).astype(np.float32)
Z = RNG.normal(size=(2, 16, 24)).astype(np.float32)


def attention(z, scale, output, allowed=None):
    out = np.zeros(z.shape)
    for u, o in zip(BASES.astype(np.float64), output.astype(np.float64), strict=True):
        w = z @ u
        scores = scale * w @ np.swapaxes(w, -1, -2)
        scores = scores if allowed is None else np.where(allowed, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out += weights / weights.sum(-1, keepdims=True) @ w @ o
    return out


def test_mssa_is_the_released_operator():
    z = Z.astype(np.float64)
    np.testing.assert_allclose(objectives.mssa(Z, BASES, OUTPUT), attention(z, 6**-0.5, OUTPUT), atol=2e-5)
    tied = BASES.swapaxes(1, 2)
    np.testing.assert_allclose(objectives.mssa(Z, BASES, scale=2.0), attention(z, 2.0, tied), atol=2e-5)
    causal, keys = np.tril(np.ones((16, 16), bool)), np.arange(16) < 11
    np.testing.assert_allclose(
        objectives.mssa(Z, BASES, OUTPUT, causal=True, mask=keys),
        attention(z, 6**-0.5, OUTPUT, causal & keys),
        atol=2e-5,
    )
    assert np.all(np.isfinite(objectives.mssa(Z, BASES, mask=np.zeros(16))))
    np.testing.assert_allclose(
        jax.vmap(lambda z: objectives.mssa(z, BASES))(Z), objectives.mssa(Z, BASES), atol=1e-6
    )


def test_mssa_in_bfloat16():
    low = objectives.mssa(jnp.asarray(Z, jnp.bfloat16), BASES, OUTPUT)
    assert low.dtype == jnp.bfloat16
    exact = attention(np.asarray(jnp.asarray(Z, jnp.bfloat16), np.float64), 6**-0.5, OUTPUT)
    assert np.linalg.norm(np.asarray(low, np.float64) - exact) < 2**-6 * np.linalg.norm(exact)
    gradients = jax.grad(lambda z, u: objectives.mssa(z, u).astype(jnp.float32).sum(), (0, 1))(
        jnp.asarray(Z, jnp.bfloat16), BASES
    )
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]


def test_gradient_step_is_the_autodiff_step():
    slope = jax.grad(lambda z: objectives.subspace_coding_rate(z, BASES, eps_sq=0.5).sum())(Z)
    step = objectives.mssa_gradient_step(Z, BASES, step_size=0.3, eps_sq=0.5)
    np.testing.assert_allclose(step, Z - 0.3 * slope, atol=1e-6)


def test_taylor_step_approaches_the_gradient_step_as_eps_to_the_minus_four():
    errors = []
    for eps_sq in (10.0, 100.0):
        exact = objectives.mssa_gradient_step(Z, BASES, step_size=eps_sq, eps_sq=eps_sq)
        taylor = objectives.mssa_taylor_step(Z, BASES, step_size=eps_sq, eps_sq=eps_sq)
        errors.append(objectives.step_agreement(Z, taylor, exact).relative_error)
    ratio = errors[0] / errors[1]
    assert np.all((ratio > 50) & (ratio < 110)), ratio  # (100/10)² up to the next order


def test_derived_step():
    beta = 6 / (16 * 0.5)
    expected = (1 - 0.1 * beta) * Z + 0.1 * beta**2 * attention(Z, 1.0, BASES.swapaxes(1, 2))
    np.testing.assert_allclose(objectives.mssa_step(Z, BASES, step_size=0.1, eps_sq=0.5), expected, atol=2e-5)


@pytest.mark.slow
def test_released_skip_goes_uphill_on_random_tokens():
    """arXiv 2411.17182: with its skip connection the released operator increases R^c."""
    z = RNG.normal(size=(4, 16, 24)).astype(np.float32)
    exact = objectives.mssa_gradient_step(z, BASES, step_size=0.1, eps_sq=0.5)
    released = objectives.mssa_released_step(z, BASES)
    agreement = objectives.step_agreement(z, released, exact)
    assert np.all(agreement.cosine < -0.2), agreement
    before, after, descended = (
        objectives.subspace_coding_rate(x, BASES, eps_sq=0.5) for x in (z, released, exact)
    )
    assert np.all(after > before) and np.all(descended < before)


def test_agreement_of_a_step_with_itself_and_with_none():
    moved = Z + 1
    same = objectives.step_agreement(Z, moved, moved)
    np.testing.assert_allclose(same.cosine, 1, rtol=1e-5)
    np.testing.assert_allclose(same.norm_ratio, 1, rtol=1e-6)
    assert np.all(objectives.step_agreement(Z, Z, moved).cosine == 0)


def test_rate_gradient_needs_no_token_by_token_array():
    z, bases = jnp.ones((4096, 64)), jnp.ones((16, 64, 4))
    rate = jax.value_and_grad(lambda z: objectives.subspace_coding_rate(z, bases, eps_sq=0.5))

    def attention_like(z):  # an n × n array would be seen
        return (z @ z.T) @ z

    for function, expected in ((rate, False), (attention_like, True)):
        assert ("4096,4096" in jax.jit(function).lower(z).compile().as_text()) is expected


@pytest.mark.parametrize("noise_std", [0.05, 0.5, 2.0])
def test_score_is_the_gradient_of_the_log_density(noise_std):
    weights = jnp.array([0.1, 0.2, 0.3, 0.4])
    z = Z[0]

    def log_density(z):
        covariances = jnp.einsum("kdp,kep->kde", BASES, BASES) + noise_std**2 * jnp.eye(24)
        exponents = -0.5 * jnp.einsum("d,kde,e->k", z, jnp.linalg.inv(covariances), z)
        return jax.scipy.special.logsumexp(exponents - 0.5 * jnp.linalg.slogdet(covariances)[1], b=weights)

    score = objectives.mixture_score(z, BASES, noise_std=noise_std, weights=weights)
    expected = jax.vmap(jax.grad(log_density))(z)
    np.testing.assert_allclose(score, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
    posterior = objectives.subspace_posterior(z, BASES, noise_std=noise_std, weights=weights)
    np.testing.assert_allclose(posterior.sum(-1), 1, rtol=1e-6)


def test_denoising_is_the_best_guess():
    rng = np.random.default_rng(3)
    which = rng.integers(0, 4, 4000)
    clean = np.einsum("ndp,np->nd", BASES[which], rng.normal(size=(4000, 6)))
    noisy = (clean + 0.5 * rng.normal(size=clean.shape)).astype(np.float32)
    guess = objectives.mixture_denoise(noisy, BASES, noise_std=0.5)
    error = np.mean((guess - clean) ** 2)
    for other in (0.9 * guess, 1.1 * guess, noisy, noisy / 1.25):
        assert error < np.mean((other - clean) ** 2)
    nearly = objectives.mixture_denoise(clean.astype(np.float32), BASES, noise_std=1e-3)
    np.testing.assert_allclose(nearly, clean, atol=1e-4)
