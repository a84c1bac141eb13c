"""What the intermediates of a block are called, and the readings that a white box takes of itself while it trains.

The intermediates of every block hold `normed` `[b, n, d]`, its layer-normed input: the features that probes read. The blocks
of this package also hold the residual stream at the three places of `POINTS`. Those of a white-box block (see
`crate.CRATEBlock`) hold besides: `mssa_update`; `ista_in`, what ISTA takes, and `ista_out`, the sparse codes `[b, n, m]`
(the output itself where the dictionary is complete); `bases` `[k, d, p]`, which are U; `dictionary` `[d, m]`;
`mssa_out_normed` and `out_normed` `[b, n, d]`, the stream after MSSA and after the block under the block's first layer norm;
`subspace_in` and `subspace_out` `[b, k, n, p]`, the tokens before and after MSSA in the layer's own coordinates, U_kᵀ LN(z);
`mssa_undone` `[b, n, d]`, the tokens after MSSA with the step taken back by MSSA of them. A ViT's hold `query` and `key`
`[b, k, n, p]`.
"""

import jax
import jax.numpy as jnp

from crate_jax import objectives

# Where the tokens of a block are looked at, and what they are called there in a white box and in a black box: as they come
# in, after attention with its skip connection, as they go out (after ISTA, or the MLP with its skip connection).
POINTS = {
    "before": ("mssa_in", "attention_in"),
    "after_attention": ("mssa_out", "attention_out"),
    "after_layer": ("out",),
}
# What `readings` returns.
READINGS = (
    "coding_rate_before",
    "coding_rate",
    "paper_coding_rate_before",
    "paper_coding_rate",
    "nonzero_fraction",
)
# The ε² of R^c of the tokens themselves, as in the released training of MCR², and that of CRATE's released metric.
EPS_SQ, RELEASED_EPS_SQ = 0.5, 0.01


def stream(intermediates: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The residual stream `[b, n, d]` at those POINTS that the intermediates of a block hold."""
    return {
        point: intermediates[name]
        for point, names in POINTS.items()
        for name in names
        if name in intermediates
    }


def unit_rows(x: jax.Array) -> jax.Array:
    """Rows `[..., d]` at unit length; a zero row stays zero."""
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1.0)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1.0)


def readings(intermediates: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """How a layer compresses and sparsifies, in two definitions of compression (CRATE, section 3.1), per example.

    - `coding_rate_before`, `coding_rate`: R^c of the tokens before and after MSSA (with its skip connection), in nats,
      as the released code measures it (token-normalised in each subspace, ε² = 0.01, summed over heads).
    - `paper_coding_rate_before`, `paper_coding_rate`: R^c(Z; U) of the same tokens as they are (Eq. 8, ε² = 0.5).
    - `nonzero_fraction`: ‖Z‖₀/(d n) of the output of ISTA.

    Args:
      intermediates: those of one block; no leading layer axis.
    Returns:
      a dict of `[b]` arrays. Pass this function as `trace=` to get `[depth, b]`.
    """
    released = jnp.stack([intermediates["subspace_in"], intermediates["subspace_out"]]).astype(jnp.float32)
    tokens = jnp.stack([intermediates["mssa_in"], intermediates["mssa_out"]]).astype(jnp.float32)
    paper = jnp.einsum("sbnd,kdp->sbknp", tokens, intermediates["bases"], precision=jax.lax.Precision.HIGHEST)
    # All in one call, with the distortion of one definition moved into its tokens: batched Cholesky factorisations at once
    # can each hold a thread of XLA's CPU pool while they wait for their parts to be run by the others, and on two cores
    # there are no others (jaxlib 0.10.2).
    parts = jnp.stack([unit_rows(released), (RELEASED_EPS_SQ / EPS_SQ) ** 0.5 * paper])
    released, paper = jnp.sum(objectives.coding_rate(parts, eps_sq=RELEASED_EPS_SQ), axis=-1)
    return {
        "coding_rate_before": released[0],
        "coding_rate": released[1],
        "paper_coding_rate_before": paper[0],
        "paper_coding_rate": paper[1],
        "nonzero_fraction": objectives.nonzero_fraction(intermediates["ista_out"]),
    }
