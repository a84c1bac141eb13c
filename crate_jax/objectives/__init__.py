"""Rate reduction and sparsity objectives as pure, jitted functions of arrays; needs jax and nothing else.

Tokens are rows: `z` is `[..., n, d]` with any leading batch axes, which may be empty; the rate of no tokens is 0. Rates are
in nats. Everything works under jit, grad, vmap, scan and shard_map, on meshes of automatic and explicit axes, computes in
fp32 whatever comes in (float64 counts as float32, also under `jax_enable_x64`), and checks its arguments (values only where
they are concrete).
"""

from crate_jax.objectives.coding_rate import (
    class_coding_rate,
    coding_rate,
    mean_and_std,
    released_coding_rate,
    subspace_coding_rate,
)
from crate_jax.objectives.denoising import mixture_denoise, mixture_score, subspace_posterior
from crate_jax.objectives.information import cross_entropy, entropy, excess, nats_to_bits
from crate_jax.objectives.rate_reduction import (
    emp_ssl_total_coding_rate,
    rate_reduction,
    simdino_regularizer,
    sparse_rate_reduction,
    sparse_rate_reduction_l1,
    token_statistics_coding_rate,
    variational_rate_reduction,
)
from crate_jax.objectives.sparsity import (
    fista,
    hoyer,
    ista,
    ista_step,
    l1_norm,
    lasso,
    nonzero_fraction,
    overcomplete_block,
    soft_threshold,
)
from crate_jax.objectives.unrolled import (
    StepAgreement,
    mssa,
    mssa_gradient_step,
    mssa_released_step,
    mssa_step,
    mssa_taylor_step,
    step_agreement,
)

__all__ = [
    "StepAgreement",
    "class_coding_rate",
    "coding_rate",
    "cross_entropy",
    "emp_ssl_total_coding_rate",
    "entropy",
    "excess",
    "fista",
    "hoyer",
    "ista",
    "ista_step",
    "l1_norm",
    "lasso",
    "mean_and_std",
    "mixture_denoise",
    "mixture_score",
    "mssa",
    "mssa_gradient_step",
    "mssa_released_step",
    "mssa_step",
    "mssa_taylor_step",
    "nats_to_bits",
    "nonzero_fraction",
    "overcomplete_block",
    "rate_reduction",
    "released_coding_rate",
    "simdino_regularizer",
    "soft_threshold",
    "sparse_rate_reduction",
    "sparse_rate_reduction_l1",
    "step_agreement",
    "subspace_coding_rate",
    "subspace_posterior",
    "token_statistics_coding_rate",
    "variational_rate_reduction",
]
