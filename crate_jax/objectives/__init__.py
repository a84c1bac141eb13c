"""Rate reduction and sparsity objectives as pure functions of arrays; needs jax and nothing else."""

from crate_jax.objectives.coding_rate import (
    coding_rate,
    mean_and_std,
    released_coding_rate,
    subspace_coding_rate,
)
from crate_jax.objectives.sparsity import ista_step, nonzero_fraction, soft_threshold
from crate_jax.objectives.unrolled import mssa

__all__ = [
    "coding_rate",
    "ista_step",
    "mean_and_std",
    "mssa",
    "nonzero_fraction",
    "released_coding_rate",
    "soft_threshold",
    "subspace_coding_rate",
]
