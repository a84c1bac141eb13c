"""CKNNA: kernel alignment restricted to nearest neighbours, in the paper's form and in the released one."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from crate_jax import InputError
from crate_jax.alignment import arguments
from crate_jax.alignment.kernels import Products
from crate_jax.alignment.knn import reorder
from crate_jax.alignment.measure import Measure
from crate_jax.alignment.neighbors import search, unit_rows

FORMS = ("paper", "platonic", "aristotelian")
ADDED = 1e-6


def cknna(a, b, k=10, *, form, similarity="cosine", unbiased=True):
    """Kernel alignment that looks only at pairs which are near neighbours in both models.

    The forms are not numerically close.

    "paper": Align(K, L) / √(Align(K, K) Align(L, L)), Align(K, L) = Σ_ij α(i, j) K̄_ij L̄_ij, with K̄ and L̄ the centred linear
    kernels HKH and HLH, and α(i, j) = 1 where j ≠ i is among the k nearest neighbours of i in both. As k → n − 1 it becomes
    CKA without the diagonals of the centred kernels.

    "platonic", "aristotelian" (the released code of both, equal): kernels are first masked, K∘α and L∘α, and then put into
    HSIC, unbiased unless `unbiased=False`; 1e-6 is added to the denominator. α is not symmetric, and HSIC multiplies K∘α by
    the transpose of L∘α: its first term counts only pairs that are neighbours both ways round, and `cknna(b, a)` is not
    `cknna(a, b)`. As k → n − 1 it becomes unbiased CKA. With `unbiased=False` a sample may be its own neighbour.

    Only the n · k kernel entries of neighbours are computed: memory is linear in n. Differentiable where the neighbours do
    not change.

    Args:
      a, b: features of the same n samples, `[n, d_a]` and `[n, d_b]`.
      k: number of neighbours; the released forms need 2.
      form: "paper", "platonic" or "aristotelian".
      similarity: "cosine" scales rows to unit length first, as the paper does; "inner" takes them as they come, as the code.
      unbiased: of the released forms, which HSIC.
    Returns:
      float32 scalar, at most about 1; may be negative. 0 where a denominator is not positive.
    Raises:
      InputError: as `mutual_knn`; form or similarity that is not accepted.

    Source: Huh et al. (arXiv 2405.07987), Appendix A; platonic-rep and Aristotelian, `metrics`.
    """
    return cknna_measure(k, form, similarity, unbiased)(a, b)


class Prepared(NamedTuple):
    """Rows `[n, d]` whose inner products are the kernel, and neighbours `[n, k]`."""

    x: jax.Array
    lists: jax.Array


@functools.cache
def cknna_measure(k=10, form="paper", similarity="cosine", unbiased=True):
    """CKNNA as a `Measure`."""
    arguments.one_of("form", form, FORMS)
    arguments.one_of("similarity", similarity, ("cosine", "inner"))
    released = form != "paper"
    if released and k < 2:
        raise InputError(f"k: {k} was given; at least 2 is accepted by the released form")

    def prepare(x):
        x = unit_rows(x) if similarity == "cosine" else x
        lists = search(x, k, "inner", itself=released and not unbiased)
        return Prepared(x if released else x - jnp.mean(x, axis=0), lists)

    def compare(a, b):
        in_b, in_a = found_in(a.lists, b.lists), found_in(b.lists, a.lists)
        ka, la = neighbor_values(a.x, a.lists), neighbor_values(b.x, a.lists)
        lb = neighbor_values(b.x, b.lists)
        if not released:
            return Products(jnp.sum(in_b * ka * la), jnp.sum(ka * ka), jnp.sum(lb * lb)).cosine()
        every = jnp.ones_like(in_b)
        parts = (
            _masked_hsic(a.lists, in_b, ka, la, unbiased),
            _masked_hsic(a.lists, every, ka, ka, unbiased),
            _masked_hsic(b.lists, jnp.ones_like(in_a), lb, lb, unbiased),
        )
        return Products(*parts).cosine(ADDED)

    return Measure(
        name=f"CKNNA, {form}, k = {k}, {similarity}" + ("" if unbiased or not released else ", biased"),
        prepare=prepare,
        permute=lambda prepared, order: Prepared(prepared.x[order], reorder(prepared.lists, order)),
        compare=compare,
        least=4 if released else 3,
        check=lambda a, b: arguments.neighbor_count(k, a.shape[0]) and None,
    )


def found_in(lists, others):
    """Which entries of `lists` `[n, k]` are in the same row of `others`, float32 `[n, k]`."""
    return jnp.any(lists[:, :, None] == others[:, None, :], axis=2).astype(jnp.float32)


def neighbor_values(x, lists):
    """Inner products of each row with those in its list, `[n, k]`; one column of the list at a time."""
    return lax.map(lambda column: jnp.sum(x * x[column], axis=1), lists.T).T


def _masked_hsic(lists, mask, first, second, unbiased):
    """HSIC of two sparse matrices, with entries `[n, k]` at the columns `lists` where the mask is 1.

    The matrices are not symmetric, and HSIC multiplies the first by the transpose of the second: tr(KL) needs both (i, j)
    and (j, i).
    """
    n, width = lists.shape
    first, second = first * mask, second * mask

    def column_sums(entries):
        return jnp.zeros(n).at[lists].add(entries)

    def returning(place):
        # For the neighbour j in this place of i's list: the second's entry (j, i), 0 where i is not in the list of j.
        j = lists[:, place]
        return jnp.sum(jnp.where(lists[j] == jnp.arange(n)[:, None], second[j], 0.0), axis=1)

    trace = jnp.sum(first * lax.map(returning, jnp.arange(width)).T)
    totals = jnp.sum(first) * jnp.sum(second)
    through = jnp.sum(column_sums(first) * jnp.sum(second, axis=1))
    if unbiased:
        return (trace + totals / ((n - 1) * (n - 2)) - 2 * through / (n - 2)) / (n * (n - 3))
    back = jnp.sum(column_sums(second) * jnp.sum(first, axis=1))
    return trace - (through + back) / n + totals / n**2
