"""Signs, scales and bounds of the objectives built on coding rates; information helpers."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from crate_jax import objectives

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(12, 6)).astype(np.float32)
Z /= np.linalg.norm(Z, axis=-1, keepdims=True)
LABELS = RNG.integers(0, 3, 12)
ONE_HOT = np.eye(3, dtype=np.float32)[LABELS]
BASES = np.linalg.qr(RNG.normal(size=(3, 6, 6)))[0].astype(np.float32)


def test_rate_reduction_is_the_difference():
    expected = oracles.coding_rate(Z, 0.5) - oracles.class_coding_rate(Z, ONE_HOT, 0.5)
    np.testing.assert_allclose(objectives.rate_reduction(Z, LABELS, eps_sq=0.5), expected, rtol=1e-5)


def test_sparse_rate_reduction():
    z = Z * (Z > 0)
    gap = oracles.coding_rate(z, 0.5) - oracles.subspace_coding_rate(z, BASES[:, :, :2], 0.5)
    given = dict(eps_sq=0.5, penalty=0.01)
    np.testing.assert_allclose(
        objectives.sparse_rate_reduction(z, BASES[:, :, :2], **given), gap - 0.01 * (z != 0).sum(), rtol=1e-4
    )
    np.testing.assert_allclose(
        objectives.sparse_rate_reduction_l1(z, BASES[:, :, :2], **given),
        gap - 0.01 * np.abs(z).sum(),
        rtol=1e-4,
    )


def test_variational_rate_reduction_bounds_and_is_tight():
    # Atoms of all classes side by side; each class uses its own eigenvectors: no residual, equality.
    eigen = [np.linalg.eigh((Z * ONE_HOT[:, [j]]).T.astype(np.float64) @ Z) for j in range(3)]
    atoms = np.concatenate([vectors for _, vectors in eigen], axis=1).astype(np.float32)
    spectrum = np.zeros((18, 3), np.float32)
    for j, (values, _) in enumerate(eigen):
        spectrum[6 * j : 6 * j + 6, j] = np.maximum(values, 0)
    bound = objectives.variational_rate_reduction(Z, ONE_HOT, atoms, spectrum, eps_sq=0.5, penalty=1.0)
    exact = objectives.rate_reduction(Z, LABELS, eps_sq=0.5)
    np.testing.assert_allclose(bound, exact, atol=1e-4)
    # Another exact decomposition, the normalised tokens themselves as atoms: a lower bound.
    bound = objectives.variational_rate_reduction(Z, ONE_HOT, Z.T, ONE_HOT, eps_sq=0.5, penalty=1.0)
    assert bound < exact
    # The residual against its definition.
    other = np.abs(RNG.normal(size=(6, 3))).astype(np.float32)
    zero, one = (
        objectives.variational_rate_reduction(Z, ONE_HOT, BASES[0], other, eps_sq=0.5, penalty=penalty)
        for penalty in (0.0, 1.0)
    )
    residual = sum(
        np.linalg.norm((Z * ONE_HOT[:, [j]]).T @ Z - BASES[0] @ np.diag(other[:, j]) @ BASES[0].T) ** 2
        for j in range(3)
    )
    np.testing.assert_allclose(zero - one, residual / 2, rtol=1e-4)


def test_variational_forms_term_by_term():
    """Scales in float64: d (not p) over n_j ε² inside, n_j/2n outside, λ/2 before the residual."""
    soft = RNG.dirichlet(np.ones(3), 12)
    z, counts = Z.astype(np.float64), soft.sum(0)
    narrow = BASES[:, :, :2].astype(np.float64)
    expected = sum(
        counts[j] / 24 * np.log1p(6 / (counts[j] * 0.5) * (soft[:, j] @ (z @ narrow[j]) ** 2)).sum()
        for j in range(3)
    )
    soft32 = soft.astype(np.float32)
    ours = objectives.token_statistics_coding_rate(Z, BASES[:, :, :2], soft32, eps_sq=0.5)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)

    atoms, spectrum = RNG.normal(size=(6, 4)), np.abs(RNG.normal(size=(4, 3)))
    unit = atoms / np.linalg.norm(atoms, axis=0)
    expected = oracles.coding_rate(z, 0.5)
    for j in range(3):
        residual = (z.T * soft[:, j]) @ z - unit * spectrum[:, j] @ unit.T
        expected -= counts[j] / 24 * np.log1p(6 / (counts[j] * 0.5) * spectrum[:, j]).sum()
        expected -= 0.3 / 2 * (residual**2).sum()
    ours = objectives.variational_rate_reduction(
        Z, soft32, atoms.astype(np.float32), spectrum.astype(np.float32), eps_sq=0.5, penalty=0.3
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_token_statistics_bound_class_rates():
    soft = RNG.dirichlet(np.ones(3), 12).astype(np.float32)
    exact = oracles.class_coding_rate(Z, soft, 0.5)
    assert objectives.token_statistics_coding_rate(Z, BASES, soft, eps_sq=0.5) >= exact
    eigen = [np.linalg.eigh((Z * soft[:, [j]]).T.astype(np.float64) @ Z)[1] for j in range(3)]
    tight = objectives.token_statistics_coding_rate(Z, np.float32(eigen), soft, eps_sq=0.5)
    np.testing.assert_allclose(tight, exact, rtol=1e-5)


def test_signs_and_scales_of_the_self_supervised_forms():
    rate = oracles.coding_rate(Z, 0.2)
    np.testing.assert_allclose(objectives.simdino_regularizer(Z, eps_sq=0.2, gamma=3.0), -3 * rate, rtol=1e-5)
    views = np.stack([Z, 2 * Z, 0 * Z])
    expected = oracles.coding_rate(views, 0.2).mean()
    np.testing.assert_allclose(objectives.emp_ssl_total_coding_rate(views), expected, rtol=1e-5)


def test_information():
    p = jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(objectives.entropy(p), [np.log(2), 0], atol=1e-7)
    assert np.all(np.isfinite(jax.grad(lambda p: objectives.entropy(p).sum())(p)))
    logits = jnp.array([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]])
    labels = jnp.array([1, 2])
    np.testing.assert_allclose(objectives.cross_entropy(logits, labels), [1e4, np.log(3)], rtol=1e-6)
    assert objectives.cross_entropy(logits.astype(jnp.bfloat16), labels).dtype == jnp.float32
    np.testing.assert_allclose(
        objectives.nats_to_bits(objectives.excess(np.log(8.0), np.log(2.0))), 2.0, rtol=1e-6
    )


BAD = {
    "z: dtype int32": lambda: objectives.coding_rate(np.ones((3, 2), np.int32), eps_sq=0.1),
    "z: shape (3,)": lambda: objectives.coding_rate(np.ones(3, np.float32), eps_sq=0.1),
    "eps_sq: 0": lambda: objectives.coding_rate(Z, eps_sq=0),
    "eps_sq: -1.0": lambda: objectives.subspace_coding_rate(Z, BASES, eps_sq=-1.0),
    "eps_sq: nan": lambda: objectives.coding_rate(Z, eps_sq=float("nan")),
    "eps_sq: 1e-06": lambda: objectives.released_coding_rate(Z[None], eps_sq=1e-6),
    "mask: shape (5,)": lambda: objectives.coding_rate(Z, eps_sq=0.1, mask=np.ones(5)),
    "bases: shape (3, 5, 6)": lambda: objectives.subspace_coding_rate(Z, BASES[:, :5], eps_sq=0.1),
    "bases: shape (6, 6)": lambda: objectives.mssa(Z, BASES[0]),
    "output: shape (2, 6, 6)": lambda: objectives.mssa(Z, BASES, BASES[:2]),
    "membership: labels of shape (4,)": lambda: objectives.rate_reduction(Z, LABELS[:4], eps_sq=0.1),
    "membership: sums that miss one by 1": lambda: objectives.class_coding_rate(Z, 2 * ONE_HOT, eps_sq=0.1),
    "membership: dtype bool": lambda: objectives.class_coding_rate(Z, ONE_HOT > 0, eps_sq=0.1),
    "membership: weights of shape (12,)": lambda: objectives.class_coding_rate(Z, ONE_HOT[:, 0], eps_sq=0.1),
    "membership: integer labels": lambda: objectives.token_statistics_coding_rate(
        Z, BASES, LABELS, eps_sq=0.1
    ),
    "spectrum: shape (6, 2)": lambda: objectives.variational_rate_reduction(
        Z, ONE_HOT, BASES[0], np.ones((6, 2), np.float32), eps_sq=0.5, penalty=1.0
    ),
    "dictionary: shape (6, 3)": lambda: objectives.ista_step(
        Z, np.ones((6, 3), np.float32), step_size=1, penalty=0
    ),
    "dictionary: shape (5, 6)": lambda: objectives.ista(
        Z, np.ones((5, 6), np.float32), steps=1, step_size=1, penalty=0
    ),
    "steps: 0": lambda: objectives.ista(Z, BASES[0], steps=0, step_size=1, penalty=0),
    "noise_std: 0": lambda: objectives.mixture_score(Z, BASES, noise_std=0),
    "weights: sums": lambda: objectives.mixture_denoise(
        Z, BASES, noise_std=1, weights=np.ones(3, np.float32)
    ),
    "probabilities: sums": lambda: objectives.entropy(np.ones(3, np.float32)),
    "labels: dtype float32": lambda: objectives.cross_entropy(Z, np.ones(12, np.float32)),
    "reference: shape (3, 6)": lambda: objectives.step_agreement(Z, Z, Z[:3]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value).startswith(message)
    assert "given" in str(error.value) and "accepted" in str(error.value)


def test_values_are_not_looked_at_under_tracing():
    jax.jit(lambda z, w, e: objectives.class_coding_rate(z, w, eps_sq=e))(Z, ONE_HOT, 0.5)
