"""Inner products of centred kernel matrices, by blocks of rows: CKA, RV and distance correlation are cosines of them.

A kernel is a symmetric function of two samples: "linear" x·y, "rbf" exp(−|x − y|²/2σ²) or "distance" |x − y|. Centring
subtracts row and column means, which removes the mean of the features (for "linear") and any constant added to the kernel;
both are subtracted beforehand, for float32's sake.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from crate_jax.alignment.neighbors import partition

KERNELS = ("linear", "rbf")
# Up to this many samples a measure keeps each layer's n × n matrix, 16 MiB at most.
DENSE = 2048
# The most samples of which all pairs are ranked or sorted.
LARGEST = 4096


class Products(NamedTuple):
    """Inner products of two centred kernel matrices: ⟨K, L⟩, ⟨K, K⟩, ⟨L, L⟩."""

    ab: jax.Array
    aa: jax.Array
    bb: jax.Array

    def cosine(self, added=0.0):
        """⟨K, L⟩ / (‖K‖ ‖L‖ + added); 0 where that is 0/0. It may be negative, but is never NaN."""
        norms = norm_of(self.aa) * norm_of(self.bb) + added
        return jnp.where(norms > 0, self.ab / jnp.where(norms > 0, norms, 1.0), 0.0)


class Rows(NamedTuple):
    """Samples as a kernel sees them: centred rows `[n, d]`, their squared lengths `[n]`, the bandwidth."""

    x: jax.Array
    squares: jax.Array
    sigma: jax.Array


def norm_of(product):
    """Square root; 0 at and below 0, where its gradient is 0 too."""
    return jnp.where(product > 0, jnp.sqrt(jnp.where(product > 0, product, 1.0)), 0.0)


def rows_of(x, sigma=None, rescale=False):
    """What `kernel_block` needs. `rescale` divides by the root mean square, which no ratio without added constants sees."""
    x = x - jnp.mean(x, axis=0)
    if rescale:
        x = x / norm_of(jnp.mean(jnp.square(x)))
    return Rows(x, jnp.sum(jnp.square(x), axis=1), jnp.asarray(1.0 if sigma is None else sigma, jnp.float32))


def kernel_block(kernel, rows, start, count):
    """(kernel values `[count, n]` of the samples from `start`, which of them are on the diagonal)."""
    n = rows.x.shape[0]
    here = start + jnp.arange(count)
    query, squares = (
        rows.x[here],
        rows.squares[here],
    )  # Past the end an index is clamped; `padding` takes it out.
    inner = jnp.matmul(query, rows.x.T, precision=lax.Precision.HIGHEST)
    diagonal = here[:, None] == jnp.arange(n)
    if kernel == "linear":
        return inner, diagonal
    distance = jnp.maximum(squares[:, None] + rows.squares - 2 * inner, 0.0)
    distance = jnp.where(diagonal, 0.0, distance)
    if kernel == "distance":
        return norm_of(distance), diagonal
    # Less 1, which centring forgets: a wide kernel is 1 nearly everywhere.
    return jnp.expm1(-0.5 * distance / jnp.square(rows.sigma)), diagonal


def _over_blocks(n, block):
    """Stack what `block(start, count)` returns for all blocks of rows; what it computes is not kept for its gradient."""
    count, blocks = partition(n, n)
    return lax.map(jax.checkpoint(lambda start: block(start, count)), jnp.arange(blocks) * count)


def row_sums(kernel, rows, unbiased):
    """Sum of each row of the kernel matrix, `[n]`; without its diagonal if `unbiased`."""

    def block(start, count):
        values, diagonal = kernel_block(kernel, rows, start, count)
        return jnp.sum(jnp.where(diagonal, 0.0, values) if unbiased else values, axis=1)

    n = rows.x.shape[0]
    return _over_blocks(n, block).reshape(-1)[:n]


def centred_block(kernel, rows, sums, start, count, unbiased):
    """Rows of the centred kernel matrix; zero past the end.

    Biased: H K H with H = I − 11ᵀ/n. Unbiased: U-centring (Székely & Rizzo 2014), whose inner products are the unbiased HSIC
    of Song et al. times n(n − 3); its diagonal is zero.
    """
    n = rows.x.shape[0]
    values, diagonal = kernel_block(kernel, rows, start, count)
    here = start + jnp.arange(count)
    own, others, total = sums[here][:, None], sums[None, :], jnp.sum(sums)
    if unbiased:
        values = values - (own + others) / (n - 2) + total / ((n - 1) * (n - 2))
        values = jnp.where(diagonal, 0.0, values)
    else:
        values = values - (own + others) / n + total / n**2
    return jnp.where((here < n)[:, None], values, 0.0)


def centred(kernel, rows, unbiased):
    """The whole centred kernel matrix `[n, n]`."""
    n = rows.x.shape[0]
    return centred_block(kernel, rows, row_sums(kernel, rows, unbiased), 0, n, unbiased)


def products(kernel, a, b, unbiased):
    """`Products` of two kernel matrices of which no more than a block is held at a time.

    Args:
      kernel: "linear", "rbf" or "distance".
      a, b: from `rows_of`.
      unbiased: divided by n(n − 3), each is an unbiased HSIC; else it is tr(KHLH).
    """
    n = a.x.shape[0]
    if kernel == "linear" and _features_are_fewer(n, a.x.shape[1], b.x.shape[1]):
        return Products(*(_linear(x, y, unbiased) for x, y in ((a, b), (a, a), (b, b))))
    sums = [row_sums(kernel, rows, unbiased) for rows in (a, b)]

    def block(start, count):
        first, second = (
            centred_block(kernel, rows, own, start, count, unbiased)
            for rows, own in zip((a, b), sums, strict=True)
        )
        return jnp.sum(first * second), jnp.sum(first * first), jnp.sum(second * second)

    return Products(*(jnp.sum(parts) for parts in _over_blocks(n, block)))


def _features_are_fewer(n, first, second):
    return first * second + first**2 + second**2 < n * (first + second)


def _linear(a, b, unbiased):
    """⟨K, L⟩ of linear kernels as ‖XᵀY‖², and for the unbiased one what the diagonals add to it."""
    n = a.x.shape[0]
    biased = jnp.sum(jnp.square(jnp.matmul(a.x.T, b.x, precision=lax.Precision.HIGHEST)))
    if not unbiased:
        return biased
    both = jnp.sum(a.squares * b.squares)
    means = jnp.sum(a.squares) * jnp.sum(b.squares) / ((n - 1) * (n - 2))
    return biased - both * (n / (n - 2)) + means


@functools.partial(jax.jit, static_argnames="whole")
def median_distance(x, whole=False):
    """The median Euclidean distance between two samples; of more than LARGEST samples, among LARGEST that are evenly spaced.

    whole: as Aristotelian has it, the lower median of all n² distances, zeros on the diagonal among them.
    """
    n = x.shape[0]
    if n > LARGEST:
        x = x[jnp.arange(LARGEST) * n // LARGEST]
    rows = rows_of(x)
    values, _ = kernel_block("distance", rows, 0, x.shape[0])
    if whole:
        ordered = jnp.sort(values.reshape(-1))
        return ordered[(ordered.size - 1) // 2]
    return jnp.median(values[jnp.triu_indices(x.shape[0], 1)])
