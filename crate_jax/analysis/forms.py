"""The sparse rate reduction of the tokens of a layer, in three named definitions, and statistics that need no bases.

    R = ½ logdet(I + d/(n ε²) ZᵀZ),   R^c = Σ_k ½ logdet(I + p/(n ε²) W_kᵀW_k),   k = 1 … K,

of n tokens Z `[n, d]` and their coordinates W_k `[n, p]` in the layer's subspaces. The forms differ in what Z and W_k are:

- `paper`: the tokens themselves and W_k = Z U_k (CRATE, arXiv 2306.01129, Eq. 7 and 8), ε² = 0.5.
- `released`: the layer-normed tokens of CRATE's released code, W_k = LN(Z) U_k with every token of every head scaled to unit
  length, ε² = 0.01, LN that of the layer's MSSA. The released code has no R; ours takes LN(Z) with tokens of unit length.
- `scale_free`: as `paper`, with Z scaled so that its tokens have unit length in the mean (‖Z‖_F² = n), ε² = 0.5: a residual
  stream that grows is not counted as rate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from crate_jax import objectives
from crate_jax.models.trace import EPS_SQ, RELEASED_EPS_SQ, stream, unit_rows

HIGHEST = jax.lax.Precision.HIGHEST


class Form(NamedTuple):
    """A definition: its ε², and what it is of, in words."""

    eps_sq: float
    definition: str


FORMS = {
    "paper": Form(EPS_SQ, "the tokens Z themselves (Eq. 7 and 8 of the paper)"),
    "released": Form(RELEASED_EPS_SQ, "LN(Z) U_k, every token of every head at unit length, as released"),
    "scale_free": Form(EPS_SQ, "the tokens scaled to a mean squared length of 1"),
}  # fmt: skip
# What each form's ε² is multiplied with in a sweep.
DECADES = (0.01, 0.1, 1.0, 10.0, 100.0)


def tokens_and_parts(z, normed, bases) -> tuple[jax.Array, jax.Array]:
    """What the FORMS take the rates of.

    Args:
      z: tokens `[b, n, d]`. normed: their layer norm. bases: U `[k, d, p]`.
    Returns:
      the tokens `[3, b, n, d]` and their coordinates `[3, b, k, n, p]`, float32, in the order of FORMS.
    """
    z, normed, bases = (x.astype(jnp.float32) for x in (z, normed, bases))

    def project(x):
        return jnp.einsum("bnd,kdp->bknp", x, bases, precision=HIGHEST)

    free, parts = scale_free(z), project(z)
    tokens = jnp.stack([z, unit_rows(normed), free])
    return tokens, jnp.stack([parts, unit_rows(project(normed)), project(free)])


def scale_free(z: jax.Array) -> jax.Array:
    """Tokens `[..., n, d]` scaled to ‖Z‖_F² = n; zeros stay zeros."""
    largest = jnp.max(jnp.abs(z), axis=(-2, -1), keepdims=True)
    z = z / jnp.where(largest > 0, largest, 1.0)
    norm = jnp.sqrt(jnp.sum(z * z, axis=(-2, -1), keepdims=True) / z.shape[-2])
    return z / jnp.where(norm > 0, norm, 1.0)


def random_bases(key: jax.Array, bases: jax.Array) -> jax.Array:
    """Orthonormal bases of random subspaces, each scaled to the Frobenius norm of the one that it stands in for.

    Where the K subspaces have room in d dimensions, they are orthogonal to each other, as the theory assumes.

    Args:
      key: decides which.
      bases: `[..., k, d, p]`.
    Returns:
      `[..., k, d, p]`, float32.
    """
    *layers, heads, dim, p = bases.shape
    if heads * p <= dim:
        drawn = jax.random.orthogonal(key, dim, tuple(layers), m=heads * p)
        drawn = jnp.moveaxis(drawn.reshape(*layers, dim, heads, p), -2, -3)
    else:
        drawn = jax.random.orthogonal(key, dim, (*layers, heads), m=p)

    def norm(x):
        return jnp.linalg.norm(x.astype(jnp.float32), axis=(-2, -1), keepdims=True)

    return drawn * norm(bases) / norm(drawn)


def reading(factor, random: jax.Array | None):
    """A function to pass as `trace=`: the rates and the statistics of one layer, per example.

    Args:
      factor: what each form's ε² is multiplied with.
      random: `[depth, k, d, p]`, bases to measure the same tokens with; None for a black box.
    Returns:
      a function from the intermediates of a block to float32 arrays, at P points (those of `trace.POINTS` that there are):
      `frobenius_norm`, `effective_rank`, `participation_ratio`, `nonzero_fraction`, `hoyer` `[P, b]`, `rate` `[P, 3, b]`
      with the forms in the order of FORMS; of a white box also `subspace_rate` and `random_subspace_rate` `[P, 3, b]` and
      `code_nonzero_fraction` `[b]`, of the codes of ISTA. For a black box `rate` is `[P, 2, b]`: paper and scale_free.
    """

    def read(report: dict[str, jax.Array]) -> dict[str, jax.Array]:
        tokens = jnp.stack(list(stream(report).values())).astype(jnp.float32)
        if random is None:
            return jax.lax.map(lambda z: {**_statistics(z), **_whole(z, factor)}, tokens)
        normed = jnp.stack([report[name] for name in ("normed", "mssa_out_normed", "out_normed")])
        bases = jnp.concatenate([report["bases"].astype(jnp.float32), random[report["layer"]]])

        def at_point(operands):
            z, normed = operands
            return {**_statistics(z), **_parts(z, normed, bases, factor)}

        found = jax.lax.map(at_point, (tokens, normed))
        return {**found, "code_nonzero_fraction": objectives.nonzero_fraction(report["ista_out"])}

    return read


def _statistics(z: jax.Array) -> dict[str, jax.Array]:
    """Norm, ranks and sparsity of tokens `[b, n, d]`, each `[b]`.

    With λ the eigenvalues of ZᵀZ over their sum, the effective rank is exp(−Σ λ log λ), the participation ratio 1/Σ λ².
    """
    unit = scale_free(z)
    gram = "bnd,bmd->bnm" if z.shape[1] <= z.shape[2] else "bnd,bne->bde"
    energies = jnp.maximum(jnp.linalg.eigvalsh(jnp.einsum(gram, unit, unit, precision=HIGHEST)), 0.0)
    share = energies / jnp.maximum(jnp.sum(energies, axis=-1, keepdims=True), 1e-30)
    logs = jnp.log(jnp.where(share > 0, share, 1.0))
    return {
        "frobenius_norm": jnp.linalg.norm(z, axis=(-2, -1)),
        "effective_rank": jnp.exp(-jnp.sum(share * logs, axis=-1)),
        "participation_ratio": 1 / jnp.maximum(jnp.sum(share**2, axis=-1), 1e-30),
        "nonzero_fraction": objectives.nonzero_fraction(z),
        "hoyer": jnp.mean(objectives.hoyer(z), axis=-1),
    }


def _whole(z, factor) -> dict[str, jax.Array]:
    return {"rate": _rates(jnp.stack([z, scale_free(z)]), ("paper", "scale_free"), factor)}


def _parts(z, normed, bases, factor) -> dict[str, jax.Array]:
    """R and R^c in every form, with the layer's bases and with as many random ones."""
    tokens, parts = tokens_and_parts(z, normed, bases)
    whole = _rates(tokens, FORMS, factor)
    # One after the other, see `models.trace.readings`.
    parts, whole = jax.lax.optimization_barrier((parts, whole))
    own, random = jnp.split(_rates(parts, FORMS, factor), 2, axis=-1)
    return {
        "rate": whole,
        "subspace_rate": jnp.sum(own, axis=-1),
        "random_subspace_rate": jnp.sum(random, axis=-1),
    }


def _rates(tokens: jax.Array, forms, factor) -> jax.Array:
    """R of tokens `[f, ..., n, d]`, one form at a time: `[f, ...]`."""
    eps_sq = factor * jnp.array([FORMS[form].eps_sq for form in forms])
    return jax.lax.map(lambda each: objectives.coding_rate(each[0], eps_sq=each[1]), (tokens, eps_sq))
