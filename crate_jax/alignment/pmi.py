"""The kernel towards which, in an ideal world, the representations of contrastive learners converge."""

import jax
import jax.numpy as jnp


@jax.jit
def pmi_kernel(counts: jax.Array, prior: jax.Array | float = 0.0) -> jax.Array:
    """How much more often two things occur together than they would by chance, as a logarithm, for every pair of things.

    K(a, b) = log (c(a, b) + κ)/(e(a, b) + κ), where e(a, b) = Σ_b c(a, b) · Σ_a c(a, b)/Σ c is the count that independence
    would give. With κ = 0 this is the pointwise mutual information log P(a, b)/(P(a) P(b)). A prior κ > 0 is the posterior
    mean of the ratio of a Poisson count to e under a Gamma prior of mean 1 and weight κ: a pair that chance would hardly
    ever show stays near 0, and one that is never seen is no longer -∞.

    Args:
      counts: `[n, n]`, not negative: how often a and b occur together, or their joint probability. Sums to more than 0.
      prior: κ, in the unit of the counts.
    Returns:
      `[n, n]` float32 (float64 of float64 counts under `jax_enable_x64`), nats; -∞ for pairs never seen without a prior, NaN
      for things never seen without one.

    Huh et al. 2024 (arXiv 2405.07987), section 4.2, where the kernel has no prior.
    """
    counts = jnp.asarray(counts, jnp.promote_types(jnp.result_type(counts), jnp.float32))
    rows, columns = counts.sum(1, keepdims=True), counts.sum(0, keepdims=True)
    expected = rows * (columns / counts.sum())
    return jnp.log(counts + prior) - jnp.log(expected + prior)
