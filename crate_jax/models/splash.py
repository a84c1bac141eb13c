"""Splash attention on TPUs: JAX's own Pallas kernel, in which scores stay on the chip.

It takes lengths that are multiples of 128, so tokens are padded up to one inside of the functions here. Padding is never a
key: it is a segment of its own. As a query it is like any other row, and its result is cut off.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

from crate_jax import InputError
from crate_jax.models.partition import on_mesh

DTYPES = ("bfloat16",)
# Lengths are multiples of it: the lanes of a TPU's registers.
LANES = 128
# As many queries, or keys, are taken at a time as divide the length.
BLOCKS = (512, 384, 256, 128)


def attend(query, key, value, *, causal, mask, lengths, real, scale):
    """See `attention.attend`; there is no `mask`."""
    if mask is not None:
        raise InputError(
            "mask of attention: found one for kernel splash; accepted: lengths, causal, or kernel xla"
        )
    n, m = query.shape[1], key.shape[1]
    real = m if real is None else real
    count = jnp.full(len(key), real) if lengths is None else jnp.clip(lengths, 1, real)
    # The kernel does not scale. A power of two, as most scales are, changes no digit.
    scaled = (query.astype(jnp.float32) * scale).astype(value.dtype)
    operands = [_pad(x.astype(value.dtype)) for x in (scaled, key, value)]
    call = partial(_attend, causal=causal, masked=lengths is not None or real < operands[1].shape[1])
    out = on_mesh(call, ("tokens",) * 3, "tokens", operands, count.astype(jnp.int32))[:, :n]
    if lengths is None:
        return out
    return jnp.where((jnp.arange(n) < lengths[:, None])[:, :, None, None], out, 0)


def attend_shared(tokens, **options):
    """See `attention.attend_shared`; there is no `mask`."""
    # In float32 up to here, so that the gradients of query and key are added up in it, before that of the value.
    wide = tokens.astype(jnp.float32)
    return attend(wide, wide, tokens, **options)


def _pad(x: jax.Array) -> jax.Array:
    """`[b, n, …]` with zeros behind, up to the next n that the kernel takes."""
    extra = -x.shape[1] % LANES
    return jnp.pad(x, ((0, 0), (0, extra), *((0, 0),) * (x.ndim - 2))) if extra else x


def _attend(query, key, value, count, *, causal: bool, masked: bool):
    """softmax(Q Kᵀ) V of `[b, n, heads, p]` over the first `count` keys of each example."""
    n, m, heads = query.shape[1], key.shape[1], query.shape[2]
    rows = splash_attention.CausalMask((n, m)) if causal else splash_attention.FullMask((n, m))
    queries, keys = (next(size for size in BLOCKS if length % size == 0) for length in (n, m))
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([rows] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash_attention.BlockSizes(
            block_q=queries,
            block_kv=keys,
            block_q_dkv=queries,
            block_kv_dkv=keys,
            use_fused_bwd_kernel=True,
        ),
    )

    def one(query: jax.Array, key: jax.Array, value: jax.Array, count: jax.Array) -> jax.Array:
        segments = splash_attention.SegmentIds(
            jnp.zeros(n, jnp.int32), (jnp.arange(m) >= count).astype(jnp.int32)
        )
        return kernel(query, key, value, segment_ids=segments if masked else None)

    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    return jnp.swapaxes(jax.vmap(one)(query, key, value, count), 1, 2)
