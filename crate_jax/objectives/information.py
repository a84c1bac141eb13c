"""Information: entropy, cross-entropy and the excess over a floor. Nats throughout; `nats_to_bits` at the
end."""

import math

import jax
import jax.numpy as jnp

from crate_jax.objectives import arguments
from crate_jax.objectives.partition import everywhere


@everywhere
def entropy(probabilities):
    """Entropy: H(p) = −Σ p log p over the last axis, with 0 log 0 = 0.

    Args:
      probabilities: `[..., m]`, non-negative, summing to one over the last axis (concrete values are
        checked).

    Returns:
      `[...]` fp32, nats, in [0, log m]. The slope at p = 0, truly infinite, counts as 0.

    Raises:
      ValueError: a non-floating dtype, no axis, negative entries, or a sum other than one.

    Source: Shannon, A Mathematical Theory of Communication (1948).

    >>> import jax.numpy as jnp
    >>> round(float(entropy(jnp.array([0.5, 0.25, 0.25]))), 4)
    1.0397
    """
    p = arguments.floating("probabilities", probabilities, "... m")
    p = arguments.distribution("probabilities", p).astype(jnp.float32)
    # The inner where keeps log's gradient at 0 out of the result.
    return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0), axis=-1)


@everywhere
def cross_entropy(logits, labels):
    """Cross-entropy, the code length of what happened: −log softmax(logits)[label].

    Args:
      logits: `[..., m]`, any floating dtype; computed in fp32.
      labels: `[...]` integers in [0, m).

    Returns:
      `[...]` fp32, nats per item, ≥ 0.

    Raises:
      ValueError: logits of a non-floating dtype, labels of another shape or a non-integer dtype.

    Source: Delétang et al. (arXiv 2309.10668), Introduction (loss as code length); Shannon (1948).

    >>> import jax.numpy as jnp
    >>> round(float(cross_entropy(jnp.zeros(8), jnp.array(3))), 4)  # log 8
    2.0794
    """
    logits = arguments.floating("logits", logits, "... m")
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels: dtype {labels.dtype} was given; an integer dtype is accepted")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels: shape {labels.shape} was given; {logits.shape[:-1]} is accepted")
    logs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.take_along_axis(logs, labels[..., None], axis=-1)[..., 0]


@everywhere
def excess(code_length, floor):
    """Excess over a floor: L − H, what a code spends above the entropy of its source, in the unit of both
    arguments.

    Args:
      code_length, floor: numbers or arrays that broadcast, in the same unit.

    Returns:
      fp32, the difference; negative only where the floor is no floor of that source (or by sampling noise).

    Raises:
      ValueError: shapes that do not broadcast (raised by JAX).

    Source: Cover and Thomas, Elements of Information Theory, Section 5.4 (Bounds on the Optimal Code Length);
    for code lengths −log q of a source p the excess is D(p‖q).

    >>> import jax.numpy as jnp
    >>> p, q = jnp.array([0.5, 0.5]), jnp.array([0.9, 0.1])
    >>> round(float(excess(-jnp.sum(p * jnp.log(q)), entropy(p))), 4)
    0.5108
    """
    return jnp.asarray(code_length, jnp.float32) - jnp.asarray(floor, jnp.float32)


@everywhere
def nats_to_bits(nats):
    """Bits: nats / log 2.

    Args:
      nats: a number or an array of any shape.

    Returns:
      fp32 of that shape, bits.

    Raises:
      TypeError: something that is no number (raised by JAX).

    Source: Shannon, A Mathematical Theory of Communication (1948).

    >>> round(float(nats_to_bits(2.0794415)), 4)
    3.0
    """
    return jnp.asarray(nats, jnp.float32) / math.log(2.0)
