"""The same quantities in float64 NumPy, by singular values (a Gram matrix would lose the small ones)."""

import numpy as np


def exact(singular):
    """Singular values without the noise that float64 leaves in place of zeros: 1e-13 of the largest and less."""
    return np.where(singular > 1e-13 * singular.max(-1, keepdims=True, initial=0), singular, 0)


def coding_rate(z, eps_sq):
    n, d = z.shape[-2:]
    singular = exact(np.linalg.svd(np.asarray(z, np.float64), compute_uv=False))
    return 0.5 * np.log1p(d / (n * eps_sq) * singular**2).sum(-1)


def coding_rate_gradient(z, eps_sq):
    n, d = z.shape
    alpha = d / (n * eps_sq)
    u, s, vt = np.linalg.svd(np.asarray(z, np.float64), full_matrices=False)
    s = exact(s)
    return (u * (alpha * s / (1 + alpha * s**2))) @ vt


def subspace_coding_rate(z, bases, eps_sq):
    z, bases = np.asarray(z, np.float64), np.asarray(bases, np.float64)
    n, p = z.shape[-2], bases.shape[-1]
    singular = exact(np.linalg.svd(np.einsum("...nd,kdp->...knp", z, bases), compute_uv=False))
    return 0.5 * np.log1p(p / (n * eps_sq) * singular**2).sum((-2, -1))


def class_coding_rate(z, weights, eps_sq):
    z, weights = np.asarray(z, np.float64), np.asarray(weights, np.float64)
    n, d = z.shape
    rate = 0.0
    for weight in weights.T:
        if weight.sum() > 0:
            singular = exact(np.linalg.svd(np.sqrt(weight)[:, None] * z, compute_uv=False))
            rate += weight.sum() / (2 * n) * np.log1p(d / (weight.sum() * eps_sq) * singular**2).sum()
    return rate


def tokens(kind, n, d, seed=0):
    """Tokens of a given kind of difficulty, entries of order one."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, d))
    if kind == "rank 1":
        z = rng.normal(size=(n, 1)) @ rng.normal(size=(1, d))
    elif kind == "rank 3":
        z = rng.normal(size=(n, 3)) @ rng.normal(size=(3, d))
    elif kind == "duplicated columns":
        z[:, d // 2 :] = z[:, : d - d // 2]
    elif kind == "equal tokens":
        z = np.tile(z[:1], (n, 1))
    elif kind == "graded":
        z = z * np.logspace(0, -8, d) @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    elif kind == "Kahan":
        triangle = 0.8 ** np.arange(d)[:, None] * (np.triu(np.full((d, d), -0.6), 1) + np.eye(d))
        z = np.vstack([triangle] * -(-n // d))[:n]
    elif kind == "nearly equal columns":
        z[:, 1:] = z[:, :1] + 1e-3 * z[:, 1:]
    elif kind == "trained":
        # What a trained network's last layers hold: a mean that outweighs the rest, and a spectrum that falls fast.
        z = z * np.logspace(0, -4, d) @ np.linalg.qr(rng.normal(size=(d, d)))[0] + 3 * rng.normal(size=d)
        z *= 10 / np.linalg.norm(z, axis=-1, keepdims=True)
    elif kind == "zero":
        z = np.zeros((n, d))
    return z


KINDS = (
    "full rank",
    "rank 1",
    "rank 3",
    "duplicated columns",
    "equal tokens",
    "graded",
    "Kahan",
    "nearly equal columns",
    "trained",
    "zero",
)
