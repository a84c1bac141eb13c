"""Nearest neighbours, exact and blockwise: no n × n array is ever held."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from crate_jax.alignment import arguments

SIMILARITIES = ("cosine", "inner", "euclidean")
# Entries of an n × n array held at once: 64 MiB of float32.
BLOCK = 2**24


def nearest_neighbors(x, k=10, *, similarity="cosine", mesh=None, recall=None):
    """For each sample, the k others that are most like it.

    Computed in float32 with `Precision.HIGHEST`, a block of rows at a time: memory is linear in n. Of samples that are
    equally similar at the last place any may be chosen, always the same ones on the same machine.

    Args:
      x: features `[n, d]`, any floating dtype.
      k: number of neighbours, from 1 to n − 1.
      similarity: "cosine", "inner" (inner product of the rows as they are, as the code released with the platonic
        representation hypothesis has it) or "euclidean" (smallest distance).
      mesh: a mesh over all of whose devices rows are spread; the rows that they are compared with travel round in a ring.
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
    return search(x, arguments.neighbor_count(k, x.shape[0]), similarity, mesh, recall)


@functools.partial(jax.jit, static_argnames=("k", "similarity", "mesh", "recall", "itself"))
def search(x, k, similarity, mesh=None, recall=None, itself=False):
    """`nearest_neighbors` without checks; `itself`: whether a sample may be its own neighbour."""
    n = x.shape[0]
    y, offset = comparable(x, similarity)
    devices = 1 if mesh is None else mesh.size
    padding = -n % devices
    y = jnp.pad(y, ((0, padding), (0, 0)))
    # What pads the last shard is nobody's neighbour.
    offset = jnp.pad(offset, (0, padding), constant_values=jnp.inf)
    if mesh is None:
        return among(y, y, offset, 0, k, 0, recall, itself)[1]
    spread = jax.P(mesh.axis_names)

    def ring(y, offset):
        me, mine = lax.axis_index(mesh.axis_names), y.shape[0]

        def turn(state, step):
            keys, offset, values, lists = state
            first = (me + step) % devices * mine
            found = among(y, keys, offset, me * mine, min(k, mine), first, recall, itself)
            values = jnp.concatenate([values, found[0]], axis=1)
            lists = jnp.concatenate([lists, found[1]], axis=1)
            values, places = lax.top_k(values, k)
            lists = jnp.take_along_axis(lists, places, axis=1)
            pairs = [((i + 1) % devices, i) for i in range(devices)]
            keys, offset = (lax.ppermute(z, mesh.axis_names, pairs) for z in (keys, offset))
            return (keys, offset, values, lists), None

        empty = (y, offset, jnp.full((mine, k), -jnp.inf), jnp.zeros((mine, k), jnp.int32))
        empty = lax.pcast(empty[2:], mesh.axis_names, to="varying")
        return lax.scan(turn, (y, offset, *empty), jnp.arange(devices))[0][3]

    return jax.shard_map(ring, mesh=mesh, in_specs=(spread, spread), out_specs=spread)(y, offset)[:n]


def among(queries, keys, offset, first_query, k, first_key, recall, itself):
    """(similarities, indices) `[m, k]` of the keys nearest to each query; the first of each have the given indices."""
    m, n = queries.shape[0], keys.shape[0]
    rows, blocks = partition(m, n)
    padded = jnp.pad(queries, ((0, blocks * rows - m), (0, 0))).reshape(blocks, rows, -1)

    def block(arguments):
        query, start = arguments
        scores = jnp.matmul(query, keys.T, precision=lax.Precision.HIGHEST) - offset
        if not itself:
            own = start - first_key + lax.broadcasted_iota(jnp.int32, scores.shape, 0)
            scores = jnp.where(own == lax.broadcasted_iota(jnp.int32, scores.shape, 1), -jnp.inf, scores)
        values, places = largest(scores, k, recall)
        return values, places + first_key

    values, places = lax.map(block, (padded, first_query + jnp.arange(blocks) * rows))
    return values.reshape(-1, k)[:m], places.reshape(-1, k)[:m]


def partition(m, n):
    """(rows in a block, number of blocks) for going through an m × n array by blocks of rows, the last one padded."""
    blocks = -(-m // max(1, BLOCK // n))
    return -(-m // blocks), blocks


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
