"""Nearest neighbours, exact and blockwise: no n × n array is ever held."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from crate_jax.alignment import arguments

SIMILARITIES = ("cosine", "inner", "euclidean")
# Entries of an n × n array held at once: 64 MiB of float32.
BLOCK = 2**24


def nearest_neighbors(x, k=10, *, similarity="cosine", recall=None):
    """For each sample, the k others that are most like it.

    Computed in float32 with `Precision.HIGHEST`, a block of rows at a time: memory is linear in n. Of samples that are
    equally similar at the last place any may be chosen, always the same ones on the same machine.

    Args:
      x: features `[n, d]`, any floating dtype.
      k: number of neighbours, from 1 to n − 1.
      similarity: "cosine", "inner" (inner product of the rows as they are, as the code released with the platonic
        representation hypothesis has it) or "euclidean" (smallest distance).
      recall: None: exact. A number below 1: on a TPU, `lax.approx_max_k` finds at least this fraction of the neighbours on
        average; other devices stay exact.
    Returns:
      int32 `[n, k]`, most similar first, the sample itself left out.
    Raises:
      InputError: features that are not `[n, d]`, not finite or constant; k or similarity that is not accepted.

    >>> import jax.numpy as jnp
    >>> nearest_neighbors(jnp.array([[0.0], [1.0], [3.0]]), 1, similarity="euclidean").tolist()
    [[1], [0], [1]]
    """
    x = arguments.features("x", x)
    arguments.one_of("similarity", similarity, SIMILARITIES)
    return search(x, arguments.neighbor_count(k, x.shape[0]), similarity, recall)


@functools.partial(jax.jit, static_argnames=("k", "similarity", "recall", "itself"))
def search(x, k, similarity, recall=None, itself=False):
    """`nearest_neighbors` without checks; `itself`: whether a sample may be its own neighbour."""
    n, d = x.shape
    x, offset = comparable(x, similarity)
    rows, blocks = partition(n)
    queries = jnp.pad(x, ((0, blocks * rows - n), (0, 0))).reshape(blocks, rows, d)
    starts = jnp.arange(blocks) * rows

    def block(arguments):
        query, start = arguments
        scores = jnp.matmul(query, x.T, precision=lax.Precision.HIGHEST) - offset
        if not itself:
            own = start + lax.broadcasted_iota(jnp.int32, scores.shape, 0)
            scores = jnp.where(own == lax.broadcasted_iota(jnp.int32, scores.shape, 1), -jnp.inf, scores)
        return largest(scores, k, recall)[1]

    return lax.map(block, (queries, starts)).reshape(-1, k)[:n]


def partition(n):
    """(rows in a block, number of blocks) for going through an n × n array by blocks of rows, the last one padded."""
    blocks = -(-n // max(1, BLOCK // n))
    return -(-n // blocks), blocks


def comparable(x, similarity):
    """Rows y and an offset o such that a row's similarities fall as y_i · y_j − o_j does."""
    if similarity == "cosine":
        return unit_rows(x), jnp.zeros(x.shape[0])
    if similarity == "euclidean":
        x = x - jnp.mean(x, axis=0)
        return x, 0.5 * jnp.sum(jnp.square(x), axis=1)
    return x, jnp.zeros(x.shape[0])


def unit_rows(x):
    """Rows of length 1; a row of zeros stays."""
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1.0)


def largest(scores, k, recall=None):
    """The k largest entries of each row, in descending order, and where they are: `lax.top_k`, faster on long rows.

    The row is cut into groups; the k largest entries lie in the k groups with the largest maxima.
    """
    if recall is not None and jax.default_backend() == "tpu":
        return lax.approx_max_k(scores, k, recall_target=recall)
    rows, n = scores.shape
    size = int((n / k) ** 0.5)
    groups = -(-n // max(size, 1))
    if groups < 4 * k:
        return lax.top_k(scores, k)
    padded = jnp.pad(scores, ((0, 0), (0, size * groups - n)), constant_values=-jnp.inf)
    # Group j holds the columns j, j + groups, …: maxima over an outer axis are vectorised.
    padded = padded.reshape(rows, size, groups)
    chosen = lax.top_k(padded.max(axis=1), k)[1]
    candidates = jnp.take_along_axis(padded, chosen[:, None, :], axis=2).reshape(rows, size * k)
    values, places = lax.top_k(candidates, k)
    return values, places // k * groups + jnp.take_along_axis(chosen, places % k, axis=1)
