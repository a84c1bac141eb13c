"""cuDNN's fused attention on NVIDIA GPUs: neither scores nor weights ever reach the device's memory.

XLA knows it as a custom call, which is written here directly: JAX's own wrapper asks for a live GPU while it traces, and a
step must also compile on machines that have none (`python -m crate_jax.plan`). The call takes bfloat16 heads whose width is
a multiple of 8, and lengths that are multiples of 8: tokens are padded up to one inside of the functions here, if they
were not before.

Padding is never a key, so what stands there reaches no token. As a query it is like any other row: its output is some
number, nobody's, and where no gradient comes in none goes out.
"""

import json
from functools import partial

import jax
import jax.numpy as jnp

from crate_jax import InputError
from crate_jax.models.partition import on_mesh

# Lengths and head widths are multiples of it.
UNIT = 8
DTYPES = ("bfloat16",)


def attend(query, key, value, *, causal, mask, lengths, real, scale):
    """See `attention.attend`; there is no `mask`."""
    counts = _counts(key, mask, lengths, real)
    return _finish(_attend(*map(pad, (query, key, value)), counts, causal, scale), query.shape[1], lengths)


def attend_shared(tokens, *, causal, mask, lengths, real, scale):
    """See `attention.attend_shared`; there is no `mask`."""
    counts = _counts(tokens, mask, lengths, real)
    return _finish(_attend_shared(pad(tokens), counts, causal, scale), tokens.shape[1], lengths)


def pad(x: jax.Array) -> jax.Array:
    """`[b, n, …]` with zeros behind, up to the next n that cuDNN takes."""
    extra = -x.shape[1] % UNIT
    return jnp.pad(x, ((0, 0), (0, extra), *((0, 0),) * (x.ndim - 2))) if extra else x


def _counts(key, mask, lengths, real) -> jax.Array | None:
    """How many keys there are for each example, int32 `[b]`; None where all are."""
    if mask is not None:
        raise InputError(
            "mask of attention: found one for kernel cudnn; accepted: lengths, causal, or kernel xla"
        )
    real = key.shape[1] if real is None else real
    if lengths is not None:
        return jnp.clip(lengths, 1, real).astype(jnp.int32)
    padded = key.shape[1] + -key.shape[1] % UNIT
    return jnp.full(len(key), real, jnp.int32) if real < padded else None


def _finish(out, length, lengths):
    out = out[:, :length]
    if lengths is None:
        return out
    return jnp.where((jnp.arange(length) < lengths[:, None])[:, :, None, None], out, 0)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(query, key, value, real, causal, scale):
    return _attend_forward(query, key, value, real, causal, scale)[0]


def _attend_forward(query, key, value, real, causal, scale):
    out, statistics = _forward(query, key, value, real, causal, scale)
    return out, (query, key, value, real, out, statistics)


def _attend_backward(causal, scale, saved, grad):
    query, key, value, real, out, statistics = saved
    grads = _backward(query, key, value, real, out, statistics, grad, causal, scale)
    return *grads, None


_attend.defvjp(_attend_forward, _attend_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _attend_shared(tokens, real, causal, scale):
    return _attend_shared_forward(tokens, real, causal, scale)[0]


def _attend_shared_forward(tokens, real, causal, scale):
    out, statistics = _forward(tokens, tokens, tokens, real, causal, scale)
    return out, (tokens, real, out, statistics)


def _attend_shared_backward(causal, scale, saved, grad):
    tokens, real, out, statistics = saved
    query, key, value = _backward(tokens, tokens, tokens, real, out, statistics, grad, causal, scale)
    # Summed in float32: three roundings to bfloat16 would be as large as the kernel's own error.
    total = sum(x.astype(jnp.float32) for x in (query, key, value))
    return total.astype(tokens.dtype), None


_attend_shared.defvjp(_attend_shared_forward, _attend_shared_backward)


def _forward(query, key, value, real, causal, scale):
    """The attended values `[b, n, heads, p]`, and of each row of scores the logarithm of Σ exp, float32 `[b, heads, n]`."""

    def call(query, key, value, *real):
        b, n, heads, p = query.shape
        config = _config(query.shape, key.shape[1], scale, causal, bool(real), backward=False)
        shapes = [
            jax.ShapeDtypeStruct((b, heads, n, p), query.dtype),
            jax.ShapeDtypeStruct((b, heads, n), jnp.float32),
        ]
        lengths = _lengths(n, real)
        out, statistics = _custom_call("__cudnn$fmhaSoftmax", shapes, config, query, key, value, *lengths)
        return jnp.swapaxes(out, 1, 2), statistics

    return on_mesh(call, ("tokens", "tokens", "tokens"), ("tokens", "rows"), (query, key, value), real)


def _backward(query, key, value, real, out, statistics, grad, causal, scale):
    """The gradients of query, key and value."""

    def call(query, key, value, statistics, grad, out, *real):
        b, n, heads, p = query.shape
        m = key.shape[1]
        config = _config(query.shape, m, scale, causal, bool(real), backward=True)
        shapes = [jax.ShapeDtypeStruct((b, heads, length, p), query.dtype) for length in (n, m, m)]
        operands = (query, key, value, statistics, grad, out, *_lengths(n, real))
        grads = [
            jnp.swapaxes(x, 1, 2)
            for x in _custom_call("__cudnn$fmhaSoftmaxBackward", shapes, config, *operands)
        ]
        if real:
            # What is written to rows that are no keys is not documented.
            keys = (jnp.arange(m) < real[0][:, None])[:, :, None, None]
            grads[1:] = [jnp.where(keys, x, 0) for x in grads[1:]]
        return tuple(grads)

    placed = ("tokens", "tokens", "tokens", "rows", "tokens", "tokens")
    return on_mesh(call, placed, ("tokens",) * 3, (query, key, value, statistics, grad, out), real)


def _lengths(queries: int, real: tuple) -> tuple:
    """The call's operands that say how many queries and keys are real: all of the queries."""
    return (jnp.full_like(real[0], queries), real[0]) if real else ()


def _custom_call(target, shapes, config, *operands):
    # Four axes are laid out as [b, n, heads, p], as the operands are, so that nothing is transposed.
    layouts = [(0, 2, 1, 3) if len(shape.shape) == 4 else None for shape in shapes]
    workspace = jax.ShapeDtypeStruct((0,), jnp.uint8)
    call = jax.ffi.ffi_call(
        target,
        [*shapes, workspace],
        custom_call_api_version=2,
        legacy_backend_config=config,
        output_layouts=[*layouts, None],
        vmap_method="sequential",
    )
    return call(*operands)[:-1]


def _config(shape, keys: int, scale: float, causal: bool, padded: bool, *, backward: bool) -> str:
    """What XLA must know of the call, as its `GpuBackendConfig` in JSON.

    The products are named by contracted and batch axes: of tokens `[b, n, heads, p]` and of scores `[b, heads, n, m]`.
    """
    b, n, heads, _ = shape
    tokens, scores = (0, 2), (0, 1)
    products = {
        "bmm1_dot_dimension_numbers": (3, 3, tokens, tokens),  # Q Kᵀ
        "bmm2_dot_dimension_numbers": (3, 1, scores, tokens),  # A V
    }
    if backward:
        products = {
            "bmm1_grad_gemm1_dot_dimension_numbers": (2, 1, scores, tokens),  # ∂Sᵀ Q
            "bmm1_grad_gemm2_dot_dimension_numbers": (3, 1, scores, tokens),  # ∂S K
            "bmm2_grad_gemm1_dot_dimension_numbers": (2, 1, scores, tokens),  # Aᵀ ∂O
            "bmm2_grad_gemm2_dot_dimension_numbers": (3, 3, tokens, tokens),  # ∂O Vᵀ
        }
    kind = "PADDING" * padded + "_" * (padded and causal) + "CAUSAL" * causal or "NO_MASK"
    attention = {
        "fmha_scale": scale,
        "intermediate_tensor_shape": {
            "element_type": "BF16",
            "dimensions": [str(size) for size in (b, heads, n, keys)],
            "layout": {"minor_to_major": ["3", "2", "1", "0"]},
            "is_dynamic_dimension": [False] * 4,
        },
        "is_flash_attention": True,
        "mask_type": kind,
        "max_seg_per_batch": 1,
        "algorithm": {
            "algo_id": "0",
            "math_type": "TENSOR_OP_MATH",
            "tuning_knobs": {"17": "1", "24": "0"},
            "is_cudnn_frontend": True,
            "workspace_size": "0",
        },
    }
    for name, (left, right, left_batch, right_batch) in products.items():
        attention[name] = {
            "lhs_contracting_dimensions": [str(left)],
            "rhs_contracting_dimensions": [str(right)],
            "lhs_batch_dimensions": list(map(str, left_batch)),
            "rhs_batch_dimensions": list(map(str, right_batch)),
        }
    return json.dumps({"cudnn_fmha_backend_config": attention})
