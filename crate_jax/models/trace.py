"""Readings of the sparse rate reduction objective, layer by layer, from the intermediates of a white-box block.

The intermediates of every block hold `normed` `[b, n, d]`, its layer-normed input: the features that probes read. Those of
a white-box block (see `crate.CRATEBlock`) also hold `mssa_in`, `mssa_update`, `mssa_out` and its output `out`, each
`[b, n, d]`; `ista_in`, which ISTA takes, `[b, n, d]`, and `ista_out`, the sparse codes `[b, n, m]` (the output itself where
the dictionary is complete); `dictionary` `[d, m]`; `subspace_in`, `subspace_out` `[b, k, n, p]`, the tokens before and after
MSSA in the layer's own coordinates, U_kᵀ LN(z); `bases` `[k, d, p]`, which are U; `mssa_undone` `[b, n, d]`, the
tokens after MSSA with its step taken back by the same MSSA of them. A ViT's hold `query` and `key` `[b, k, n, p]`.
"""

import jax
import jax.numpy as jnp

from crate_jax import objectives

READINGS = ("coding_rate_before", "coding_rate", "nonzero_fraction")


def readings(intermediates: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The layer-wise measurements of CRATE (section 3.1) for one layer, one value per example.

    - `coding_rate_before`, `coding_rate`: R^c of the tokens before and after MSSA (with its skip connection), in nats,
      as the released code measures it (token-normalised in each subspace, ε² = 0.01, summed over heads).
    - `nonzero_fraction`: ‖Z‖₀/(d n) of the output of ISTA.

    Args:
      intermediates: those of one block; no leading layer axis.
    Returns:
      a dict of `[b]` arrays. Pass this function as `trace=` to get `[depth, b]`.
    """
    # Both in one call: two batched Cholesky factorisations at once can each hold a thread of XLA's CPU pool while they
    # wait for their parts to be run by the others, and on two cores there are no others (jaxlib 0.10.2).
    before, after = objectives.released_coding_rate(
        jnp.stack([intermediates["subspace_in"], intermediates["subspace_out"]])
    )
    return {
        "coding_rate_before": before,
        "coding_rate": after,
        "nonzero_fraction": objectives.nonzero_fraction(intermediates["ista_out"]),
    }
