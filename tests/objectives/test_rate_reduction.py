"""Signs, scales and bounds of the objectives built on coding rates; information helpers."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from conftest import slow_but

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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("norm", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("kind", ["no residual", "soft", "atoms of any length"])
def test_variational_rate_reduction_of_long_tokens(norm, kind):
    """A residual of 1e-7 of the moments, in float64: nothing may cancel."""
    rng = np.random.default_rng(0)
    n, d, classes = 1000, 16, 3
    z = rng.normal(size=(n, d))
    z = (norm * z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    weights = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, n)]
    if kind != "no residual":
        weights = rng.dirichlet(np.ones(classes), n).astype(np.float32)
    atoms, spectrum = np.zeros((d, classes * d)), np.zeros((classes * d, classes))
    for j, weight in enumerate(np.float64(weights).T):
        own = slice(j * d, j * d + d)
        spectrum[own, j], atoms[:, own] = np.linalg.eigh((z.T * weight) @ np.float64(z))
    if kind == "atoms of any length":
        atoms = atoms * rng.uniform(0.1, 10, classes * d)
    given = [x.astype(np.float32) for x in (atoms, spectrum)]
    penalty = 0.5

    def exact(weights):
        atoms, spectrum = (np.float64(x) for x in given)
        atoms = atoms / np.linalg.norm(atoms, axis=0)
        total = oracles.coding_rate(z, 0.5)
        for j, weight in enumerate(weights.T):
            count = weight.sum()
            total -= count / (2 * n) * np.log1p(d / (count * 0.5) * spectrum[:, j]).sum()
            residual = (z.T * weight) @ np.float64(z) - atoms * spectrum[:, j] @ atoms.T
            total -= penalty / 2 * (residual**2).sum()
        return total

    def ours(weights):
        return objectives.variational_rate_reduction(z, weights, *given, eps_sq=0.5, penalty=penalty)

    np.testing.assert_allclose(ours(weights), exact(np.float64(weights)), rtol=1e-3)
    slope = np.asarray(jax.grad(ours)(jnp.asarray(weights)))
    size = 1e-6
    for i, j in ((0, 0), (1, 2)):
        step = np.zeros((n, classes))
        step[i, j] = size
        both = [exact(np.float64(weights) + sign * step) for sign in (1, -1)]
        wanted = (both[0] - both[1]) / (2 * size)
        np.testing.assert_allclose(slope[i, j], wanted, rtol=1e-2, atol=1e-4 * max(1, np.abs(slope).max()))


CASES = {
    "wide": (7, 10, 1.0),
    "tall": (30, 5, 1.0),
    "short": (20, 6, 1e-3),
    "long": (20, 6, 1e3),
    "huge": (9, 4, 1e20),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "function",
    slow_but(["class_coding_rate", "rate_reduction", "token_statistics_coding_rate"], "class_coding_rate"),
)
def test_membership_gradients_at_one_hot_weights(function, case):
    """They are the one-sided derivatives, also by the weights of an empty class."""
    n, d, scale = CASES[case]
    rng = np.random.default_rng(1)
    z = (scale * rng.normal(size=(n, d))).astype(np.float32)
    one_hot = np.eye(3, dtype=np.float32)[rng.integers(0, 2, n)]  # the third class is empty
    bases = np.linalg.qr(rng.normal(size=(3, d, d)))[0][:, :, :2].astype(np.float32)
    alpha = lambda count: d / (count * 0.5)  # noqa: E731

    def slope_of_class(j, i):
        weight, tokens = np.float64(one_hot[:, j]), np.float64(z)
        count = weight.sum()
        if count == 0:
            if function == "token_statistics_coding_rate":
                return np.log1p(alpha(1) * (tokens[i] @ bases[j]) ** 2).sum() / (2 * n)
            return np.log1p(alpha(1) * (tokens[i] ** 2).sum()) / (2 * n)
        if function == "token_statistics_coding_rate":
            moments = weight @ (tokens @ bases[j]) ** 2
            grown = alpha(count) * moments
            mine = alpha(count) * (tokens[i] @ bases[j]) ** 2
            return ((np.log1p(grown) - grown / (1 + grown)).sum() + (count * mine / (1 + grown)).sum()) / (
                2 * n
            )
        _, s, vt = np.linalg.svd(weight[:, None] * tokens, full_matrices=False)
        s = oracles.exact(s)
        grown = alpha(count) * s**2
        inside = vt @ tokens[i]
        outside = (tokens[i] ** 2).sum() - (inside**2).sum()
        outside = outside if outside > 1e-12 * (tokens[i] ** 2).sum() else 0.0
        lever = alpha(count) * ((inside**2 / (1 + grown)).sum() + outside)
        return (np.log1p(grown).sum() - (grown / (1 + grown)).sum() + count * lever) / (2 * n)

    if function == "token_statistics_coding_rate":
        call = lambda w: objectives.token_statistics_coding_rate(z, bases, w, eps_sq=0.5)  # noqa: E731
    else:
        call = lambda w: getattr(objectives, function)(z, w, eps_sq=0.5)  # noqa: E731
    sign = -1 if function == "rate_reduction" else 1
    slope = sign * np.asarray(jax.jit(jax.grad(call))(jnp.asarray(one_hot)))
    wanted = np.array([[slope_of_class(j, i) for j in range(3)] for i in range(n)])
    np.testing.assert_allclose(slope, wanted, rtol=1e-2)


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


def test_float64_probabilities_are_taken():
    rng = np.random.default_rng(0)
    dirichlet = rng.dirichlet(np.ones(1000), 50)
    copied = np.asarray(jax.nn.softmax(jnp.asarray(rng.normal(size=(8, 50000)), jnp.float32)), np.float64)
    for p in (dirichlet, copied):
        exact = -(p * np.log(np.maximum(p, 1e-300))).sum(-1)
        np.testing.assert_allclose(objectives.entropy(p), exact, rtol=1e-5)
    soft = rng.dirichlet(np.ones(5), 12)
    np.testing.assert_allclose(
        objectives.class_coding_rate(Z, soft, eps_sq=0.5), oracles.class_coding_rate(Z, soft, 0.5), rtol=1e-5
    )
    with pytest.raises(ValueError, match="sums that miss one by"):
        objectives.entropy(dirichlet * 1.001)


def test_values_are_not_looked_at_under_tracing():
    jax.jit(lambda z, w, e: objectives.class_coding_rate(z, w, eps_sq=e))(Z, ONE_HOT, 0.5)
