"""The compression step that CRATE unrolls: multi-head subspace self-attention (MSSA), derived, released and exact."""

import jax
import jax.numpy as jnp

from crate_jax.objectives import arguments


def mssa(z, bases, output=None, *, scale=None, causal=False, mask=None):
    """Multi-head subspace self-attention as released, without the skip: Σ_k softmax(s·W_k W_kᵀ) W_k O_k, W_k = Z U_k.

    z: `[..., n, d]`; bases U: `[k, d, p]`; output O: `[k, p, d]` (None ties it to U_kᵀ); scale s: p^-½ by default;
    mask: `[..., n]`, the tokens that may be attended to. Matmuls run in z's dtype with fp32 accumulation, the
    softmax in fp32.
    """
    z = arguments.floating("z", z, "... n d")
    bases = arguments.floating("bases", bases, "k d p")
    arguments.same_size("bases", bases, 1, z.shape[-1], "the features of z")
    bases = bases.astype(z.dtype)
    if output is None:
        output = jnp.swapaxes(bases, 1, 2)
    else:
        output = arguments.floating("output", output, "k p d")
        arguments.same_size("output", output, 0, bases.shape[0], "the heads of bases")
        arguments.same_size("output", output, 1, bases.shape[2], "the subspace dimension of bases")
    scale = bases.shape[-1] ** -0.5 if scale is None else scale
    heads, d, p = bases.shape
    # One flat [d, k·p] matmul each way: measured faster than letting einsum carry the head axis through the product.
    w = jnp.swapaxes(
        (z @ jnp.swapaxes(bases, 0, 1).reshape(d, heads * p)).reshape(*z.shape[:-1], heads, p), -3, -2
    )
    scores = scale * jnp.einsum("...ip,...jp->...ij", w, w, preferred_element_type=jnp.float32)
    allowed = None
    if causal:
        n = z.shape[-2]
        allowed = jnp.tril(jnp.ones((n, n), bool))
    if mask is not None:
        keys = arguments.token_mask(mask, z)[..., None, None, :] > 0
        allowed = keys if allowed is None else allowed & keys
    if allowed is not None:
        # A large finite number: a row with nothing to attend to stays finite.
        scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
    attention = jax.nn.softmax(scores, axis=-1).astype(z.dtype)
    w = jnp.swapaxes(jnp.einsum("...ij,...jp->...ip", attention, w), -3, -2)
    return w.reshape(*z.shape[:-1], heads * p) @ output.astype(z.dtype).reshape(heads * p, d)
