"""One call of every public function, of arrays whose first one is tokens `[b, n, d]` (or what comes closest)."""

import numpy as np

from crate_jax import objectives as o

B, N, D, K, P = 4, 8, 6, 2, 3


def arrays(batch=B, tokens=N):
    """The arrays that the calls name, for a batch and a number of tokens that may be 0."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {
        "z": normal(batch, tokens, D),
        "moved": normal(batch, tokens, D),
        "heads": normal(batch, K, tokens, P),
        "views": normal(batch, 3, tokens, D),
        "bases": np.linalg.qr(normal(K, D, D))[0][:, :, :P],
        "output": normal(K, P, D),
        "square": 0.2 * normal(D, D),
        "wide": 0.2 * normal(D, 2 * D),
        "codes": normal(batch, tokens, 2 * D),
        "labels": rng.integers(0, K, (batch, tokens)),
        "soft": rng.dirichlet(np.ones(K), (batch, tokens)).astype(np.float32),
        "mask": rng.random((batch, tokens)) < 0.8,
        "set": normal(tokens, D),
        "set_soft": rng.dirichlet(np.ones(K), tokens).astype(np.float32),
        "atoms": normal(D, 2 * D),
        "spectrum": np.abs(normal(2 * D, K)),
        "classes": rng.integers(0, D, (batch, tokens)),
    }


STEP = dict(step_size=0.1, penalty=0.1)
CALLS = {
    "class_coding_rate": (
        lambda z, labels: o.class_coding_rate(z, labels, eps_sq=0.5),
        lambda z, soft: o.class_coding_rate(z, soft, eps_sq=0.5),
        lambda z, soft, mask: o.class_coding_rate(z, soft, eps_sq=0.5, mask=mask),
    ),
    "coding_rate": (
        lambda z: o.coding_rate(z, eps_sq=0.5),
        lambda z, mask: o.coding_rate(z, eps_sq=0.5, mask=mask),
    ),
    "cross_entropy": (lambda z, classes: o.cross_entropy(z, classes),),
    "emp_ssl_total_coding_rate": (lambda views: o.emp_ssl_total_coding_rate(views),),
    "entropy": (lambda soft: o.entropy(soft),),
    "excess": (lambda z, moved: o.excess(z, moved),),
    "fista": (lambda z, wide: o.fista(z, wide, steps=3, **STEP),),
    "hoyer": (lambda z: o.hoyer(z),),
    "ista": (lambda z, wide: o.ista(z, wide, steps=3, **STEP),),
    "ista_step": (
        lambda z, square: o.ista_step(z, square, **STEP),
        lambda codes, wide, z: o.ista_step(codes, wide, target=z, **STEP),
    ),
    "l1_norm": (lambda z: o.l1_norm(z),),
    "lasso": (lambda codes, wide, z: o.lasso(codes, wide, z, penalty=0.1),),
    "mean_and_std": (lambda z: o.mean_and_std(z),),
    "mixture_denoise": (lambda z, bases: o.mixture_denoise(z, bases, noise_std=0.5),),
    "mixture_score": (lambda z, bases: o.mixture_score(z, bases, noise_std=0.5),),
    "mssa": (
        lambda z, bases, output: o.mssa(z, bases, output),
        lambda z, bases, mask: o.mssa(z, bases, causal=True, mask=mask),
        lambda z, bases: o.mssa(z, bases, softmax=False),
    ),
    "mssa_gradient_step": (lambda z, bases: o.mssa_gradient_step(z, bases, step_size=0.1, eps_sq=0.5),),
    "mssa_released_step": (lambda z, bases: o.mssa_released_step(z, bases),),
    "mssa_step": (lambda z, bases: o.mssa_step(z, bases, step_size=0.1, eps_sq=0.5),),
    "mssa_taylor_step": (lambda z, bases: o.mssa_taylor_step(z, bases, step_size=0.1, eps_sq=0.5),),
    "nats_to_bits": (lambda z: o.nats_to_bits(z),),
    "nonzero_fraction": (
        lambda z: o.nonzero_fraction(z),
        lambda z, mask: o.nonzero_fraction(z, mask=mask),
    ),
    "overcomplete_block": (lambda z, wide: o.overcomplete_block(z, wide, wide),),
    "rate_reduction": (lambda z, labels: o.rate_reduction(z, labels, eps_sq=0.5),),
    "released_coding_rate": (lambda heads: o.released_coding_rate(heads),),
    "simdino_regularizer": (lambda z: o.simdino_regularizer(z),),
    "soft_threshold": (
        lambda z: o.soft_threshold(z, 0.3),
        lambda z: o.soft_threshold(z, 0.3, nonnegative=True),
    ),
    "sparse_rate_reduction": (lambda z, bases: o.sparse_rate_reduction(z, bases, eps_sq=0.5, penalty=0.1),),
    "sparse_rate_reduction_l1": (
        lambda z, bases, mask: o.sparse_rate_reduction_l1(z, bases, eps_sq=0.5, penalty=0.1, mask=mask),
    ),
    "step_agreement": (lambda z, moved: o.step_agreement(z, moved, 2 * moved),),
    "subspace_coding_rate": (lambda z, bases: o.subspace_coding_rate(z, bases, eps_sq=0.5),),
    "subspace_posterior": (
        lambda z, bases: o.subspace_posterior(z, bases, noise_std=0.5),
        lambda z, bases: o.subspace_posterior(z, bases, noise_std=0.5, weights=np.array([0.3, 0.7])),
    ),
    "token_statistics_coding_rate": (
        lambda z, bases, soft: o.token_statistics_coding_rate(z, bases, soft, eps_sq=0.5),
    ),
    "variational_rate_reduction": (
        lambda set, set_soft, atoms, spectrum: o.variational_rate_reduction(
            set, set_soft, atoms, spectrum, eps_sq=0.5, penalty=0.1
        ),
    ),
}
EACH = [(name, call) for name, calls in CALLS.items() for call in calls]


def names(call):
    """The arrays that a call takes, by name."""
    return call.__code__.co_varnames[: call.__code__.co_argcount]
