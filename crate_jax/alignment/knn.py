"""Measures on lists of nearest neighbours: do two models find the same samples alike?

Neighbours are found by "cosine" unless another `similarity` is given: the platonic representation hypothesis (arXiv
2405.07987) scales features to unit length and takes inner products. Its released `metrics.py`, and Aristotelian's, take
inner products of the rows as they come: `similarity="inner"` gives their numbers on features that are not scaled. ReSi
measures cosine or Euclidean distances.
"""

import functools

import jax.numpy as jnp
from jax import lax

from crate_jax.alignment import arguments
from crate_jax.alignment.measure import Measure, inverse
from crate_jax.alignment.neighbors import SIMILARITIES, partition, search


def mutual_knn(a, b, k=10, *, similarity="cosine", mesh=None, recall=None):
    """Share of the k nearest neighbours that a sample has in both models, averaged over samples.

    m = (1/n) Σ_i |S_a(i) ∩ S_b(i)| / k, where S(i) are the k nearest neighbours of sample i. By chance it is k/(n − 1).
    Platonic, Aristotelian (there also as "distance-agnostic unbiased CKNNA") and the paper agree on the formula.

    Args:
      a, b: features of the same n samples, `[n, d_a]` and `[n, d_b]`.
      k: number of neighbours.
      similarity, mesh, recall: see `nearest_neighbors`.
    Returns:
      float32 scalar, 0 to 1.
    Raises:
      InputError: unequal numbers of rows, fewer than 2, NaN, constant features, k outside 1 … n − 1.

    Source: Huh et al., The Platonic Representation Hypothesis (arXiv 2405.07987), Section 3 and Appendix A.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[0.0], [1.0], [5.0], [6.5]])
    >>> float(mutual_knn(x, -2 * x, k=1, similarity="euclidean"))
    1.0
    """
    return knn_measure("mutual_knn", k, similarity, mesh, recall)(a, b)


def jaccard_knn(a, b, k=10, *, similarity="cosine"):
    """Neighbours that a sample has in both models over those that it has in either, averaged over samples.

    J = (1/n) Σ_i |S_a(i) ∩ S_b(i)| / |S_a(i) ∪ S_b(i)|. ReSi's `JaccardSimilarity` with the same similarity.

    Arguments, errors: as `mutual_knn`. Returns float32, 0 to 1. Source: Klabunde et al., ReSi (arXiv 2408.00531).
    """
    return knn_measure("jaccard_knn", k, similarity)(a, b)


def cycle_knn(a, b, k=10, *, similarity="cosine"):
    """Share of samples that some neighbour in b, seen in a, has as a neighbour.

    (1/n) Σ_i [∃ j ∈ S_b(i): i ∈ S_a(j)]. Not symmetric: `cycle_knn(b, a)` is another number. By chance it is far from 0, for
    k² paths lead back.

    Arguments, errors: as `mutual_knn`. Returns float32, 0 to 1. Source: platonic-rep, `metrics.py`.
    """
    return knn_measure("cycle_knn", k, similarity)(a, b)


def lcs_knn(a, b, k=10, *, similarity="cosine"):
    """Length of the longest common subsequence of a sample's two ranked lists of neighbours, averaged over samples.

    Not divided by k: the released code returns a length, from 0 to k.

    Arguments, errors: as `mutual_knn`. Returns float32. Source: platonic-rep, `metrics.py`.
    """
    return knn_measure("lcs_knn", k, similarity)(a, b)


def edit_distance_knn(a, b, k=10, *, similarity="cosine"):
    """1 − edit distance between a sample's two ranked lists of neighbours over k, averaged over samples.

    The distance is Levenshtein's: insertions, deletions and substitutions cost 1.

    Arguments, errors: as `mutual_knn`. Returns float32, 0 to 1. Source: platonic-rep, `metrics.py`.
    """
    return knn_measure("edit_distance_knn", k, similarity)(a, b)


@functools.cache
def knn_measure(name, k=10, similarity="cosine", mesh=None, recall=None):
    """The measure on neighbour lists of that name; what it prepares is int32 `[n, k]`, most similar first."""
    arguments.one_of("similarity", similarity, SIMILARITIES)
    arguments.one_of("measure", name, tuple(_COMPARE))
    return Measure(
        name=f"{name}, k = {k}, {similarity}",
        prepare=lambda x: search(x, k, similarity, mesh, recall),
        permute=reorder,
        compare=_COMPARE[name],
        check=lambda a, b: arguments.neighbor_count(k, a.shape[0]) and None,
        table=_mutual_table if name == "mutual_knn" else None,
        chance=(lambda a, b: jnp.asarray(k / (len(a) - 1))) if name == "mutual_knn" else None,
    )


def reorder(lists, order):
    """The neighbour lists of the samples in another order."""
    return inverse(order)[lists[order]]


def common(a, b):
    """Number of neighbours in both lists, int32 `[n]`."""
    return jnp.sum(a[:, :, None] == b[:, None, :], axis=(1, 2), dtype=jnp.int32)


def _mutual(a, b):
    return jnp.sum(common(a, b)) / a.size


def _mutual_table(a, b, orders):
    """Mutual kNN of all layers. Bit l of word (i, j) says whether j is among i's neighbours in layer l of a: one look at it
    answers for 32 layers."""
    layers, n, k = a.shape
    words = -(-layers // 32)
    rows, blocks = partition(n, n * words)
    lists = jnp.pad(a, ((0, 0), (0, rows * blocks - n), (0, 0))).reshape(layers, blocks, rows, k)
    own = jnp.minimum(jnp.arange(rows * blocks), n - 1).reshape(blocks, rows)
    real = (jnp.arange(rows * blocks) < n).reshape(blocks, rows)
    layer = jnp.arange(layers)
    bits = jnp.left_shift(jnp.uint32(1), (layer % 32).astype(jnp.uint32))

    def block(arguments):
        lists, own, real = arguments
        here = jnp.arange(rows)[None, :, None]
        known = jnp.zeros((words, rows, n), jnp.uint32)
        known = known.at[(layer // 32)[:, None, None], here, lists].add(bits[:, None, None])

        def permuted(order):
            others = inverse(order)[b[:, order[own]]]
            found = known[:, here, others]
            found = jnp.where(real[None, None, :, None], found, 0)[layer // 32]
            return jnp.sum((found & bits[:, None, None, None]) != 0, axis=(2, 3), dtype=jnp.int32)

        return lax.map(permuted, orders)

    counts = lax.map(block, (jnp.moveaxis(lists, 1, 0), own, real))
    return jnp.sum(counts, axis=0) / (n * k)


def _jaccard(a, b):
    both = common(a, b)
    return jnp.mean(both / (2 * a.shape[1] - both))


def _cycle(a, b):
    back = a[b] == jnp.arange(a.shape[0])[:, None, None]
    return jnp.sum(jnp.any(back, axis=(1, 2))) / a.shape[0]


def _longest_common_subsequence(a, b):
    def extend(best, symbol):
        # best[j]: longest so far within the first j of b. The running maximum carries a longer one on.
        longer = best[:, :-1] + (symbol[:, None] == b)
        return jnp.pad(lax.cummax(jnp.maximum(best[:, 1:], longer), axis=1), ((0, 0), (1, 0))), None

    n, k = b.shape
    best, _ = lax.scan(extend, jnp.zeros((n, k + 1), jnp.int32), a.T)
    return jnp.sum(best[:, -1]) / n


def _edit_distance(a, b):
    n, k = b.shape
    place = jnp.arange(k + 1)

    def extend(cost, symbol):
        changed = jnp.minimum(cost[:, 1:] + 1, cost[:, :-1] + (symbol[:, None] != b))
        new = jnp.concatenate([cost[:, :1] + 1, changed], axis=1)
        # An insertion costs 1 per place to the right.
        return lax.cummin(new - place, axis=1) + place, None

    cost, _ = lax.scan(extend, jnp.broadcast_to(place, (n, k + 1)), a.T)
    return jnp.sum(k - cost[:, -1]) / b.size


_COMPARE = {
    "mutual_knn": _mutual,
    "jaccard_knn": _jaccard,
    "cycle_knn": _cycle,
    "lcs_knn": _longest_common_subsequence,
    "edit_distance_knn": _edit_distance,
}
