"""softmax(s W Wᵀ) W, the heads of CRATE's MSSA, as a Pallas kernel for GPUs that reads W once as query, key and value.

Never timed on a card, so no model uses it: `python -m benchmarks.gpu` compares it with cuDNN's kernel where there is one.

S = s W Wᵀ is symmetric. What a block of rows i needs of its columns stands therefore in the rows themselves: with l the
logarithm of each row's Σ exp, A_ij = exp(S_ij − l_i) and A_ji = exp(S_ij − l_j). The gradient of block i is then a sum over
the blocks j that needs no other program's result,
    ∂W_i = Σ_j s (A_ij (G_i W_jᵀ − D_i) + A_ji (W_i G_jᵀ − D_j)) W_j + A_ji G_j,   D = Σ_p G O,
with G the gradient of the output O. These are five products for each pair of blocks, as many as any flash attention makes
backward, and nothing is added up between programs, so the bits are the same every time.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from crate_jax import InputError

# What scores of padding are replaced by: finite, so that no difference of two is NaN.
LOW = -1e30


class Blocks(NamedTuple):
    """Rows and columns that a program takes at a time, its warps of 32 threads, and loads that it has under way at once."""

    rows: int = 64
    columns: int = 64
    warps: int = 4
    stages: int = 2


DEFAULT = Blocks()


class Shape(NamedTuple):
    """What a kernel knows when it is compiled: tokens, those that are no padding, the width of a head, and the scale s."""

    tokens: int
    real: int
    width: int
    scale: float

    @property
    def wide(self) -> int:
        """The width as a power of two, which arrays in a kernel have."""
        return max(16, pl.next_power_of_2(self.width))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def attend(
    tokens: jax.Array,
    real: int,
    forward: Blocks = DEFAULT,
    backward: Blocks = DEFAULT,
    interpret: bool = False,
) -> jax.Array:
    """`attention.attend_shared` with s = p^-½: `[b, n, heads, p]` → the same, in its dtype.

    Args:
      tokens: W.
      real: tokens that are no padding, the first ones. The rows of the others come out as some number, and where none of
        their gradient comes in none goes out.
      forward, backward: how the work is cut up.
      interpret: compute it without a GPU, slowly.
    """
    del backward
    return _forward(tokens, real, forward, interpret)[0]


def _forward(tokens, real, blocks, interpret):
    b, n, heads, _ = tokens.shape
    shapes = [
        jax.ShapeDtypeStruct(tokens.shape, tokens.dtype),
        jax.ShapeDtypeStruct((b, heads, n), jnp.float32),
    ]
    return _call(_forward_kernel, shapes, real, blocks, interpret, tokens)


def _attend_forward(tokens, real, forward, backward, interpret):
    del backward
    out, logs = _forward(tokens, real, forward, interpret)
    return out, (tokens, out, logs)


def _attend_backward(real, forward, backward, interpret, saved, grad):
    del forward
    tokens, out, logs = saved
    dots = jnp.sum(out.astype(jnp.float32) * grad.astype(jnp.float32), axis=-1).swapaxes(1, 2)
    shape = jax.ShapeDtypeStruct(tokens.shape, tokens.dtype)
    return (_call(_backward_kernel, shape, real, backward, interpret, tokens, grad, logs, dots),)


attend.defvjp(_attend_forward, _attend_backward)


def _call(kernel, out_shape, real, blocks, interpret, tokens, *operands):
    b, n, heads, p = tokens.shape
    kernel = partial(kernel, Shape(n, real, p, p**-0.5), blocks)
    options = triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages)
    grid = (pl.cdiv(n, blocks.rows), heads, b)
    call = pl.pallas_call(
        kernel, out_shape, grid=grid, interpret=interpret, compiler_params=None if interpret else options
    )
    return call(tokens, *operands)


def _forward_kernel(shape: Shape, blocks: Blocks, w_ref, out_ref, logs_ref):
    block, head, example = (pl.program_id(axis) for axis in range(3))
    query = _load(w_ref, shape, example, head, block * blocks.rows, blocks.rows)
    # Powers of two are what the chip computes: exp(x) = 2^(x log₂ e).
    scale = shape.scale * math.log2(math.e)

    def step(j, carry):
        out, peak, total = carry
        key = _load(w_ref, shape, example, head, j * blocks.columns, blocks.columns)
        seen = j * blocks.columns + jnp.arange(blocks.columns) < shape.real
        scores = jnp.where(seen[None], scale * _product(query, key.T), LOW)
        higher = jnp.maximum(peak, jnp.max(scores, axis=1))
        weights, kept = jnp.exp2(scores - higher[:, None]), jnp.exp2(peak - higher)
        out = out * kept[:, None] + _product(weights.astype(key.dtype), key)
        return out, higher, total * kept + jnp.sum(weights, axis=1)

    start = (
        jnp.zeros((blocks.rows, shape.wide), jnp.float32),
        jnp.full(blocks.rows, LOW, jnp.float32),
        jnp.zeros(blocks.rows, jnp.float32),
    )
    out, peak, total = jax.lax.fori_loop(0, pl.cdiv(shape.real, blocks.columns), step, start)
    _store(out_ref, shape, example, head, block * blocks.rows, out / total[:, None])
    rows = pl.ds(block * blocks.rows, blocks.rows)
    inside = block * blocks.rows + jnp.arange(blocks.rows) < shape.tokens
    triton.store(logs_ref.at[example, head, rows], peak + jnp.log2(total), mask=inside)


def _backward_kernel(shape: Shape, blocks: Blocks, w_ref, grad_ref, logs_ref, dots_ref, out_ref):
    block, head, example = (pl.program_id(axis) for axis in range(3))

    def read(first, count):
        """W, the gradient of the output, logarithms and D of some rows, and which of these are no padding."""
        rows = first + jnp.arange(count)
        numbers = [
            triton.load(ref.at[example, head, pl.ds(first, count)], mask=rows < shape.tokens, other=other)
            for ref, other in ((logs_ref, -LOW), (dots_ref, 0.0))
        ]
        w, grad = (_load(ref, shape, example, head, first, count) for ref in (w_ref, grad_ref))
        return w, grad, *numbers, rows < shape.real

    w, grad, logs, dots, real = read(block * blocks.rows, blocks.rows)
    scale = shape.scale * math.log2(math.e)

    def step(j, total):
        other, other_grad, other_logs, other_dots, other_real = read(j * blocks.columns, blocks.columns)
        scores = scale * _product(w, other.T)
        mine = jnp.where(other_real[None], jnp.exp2(scores - logs[:, None]), 0)
        theirs = jnp.where(real[:, None], jnp.exp2(scores - other_logs[None]), 0)
        grad_scores = mine * (_product(grad, other.T) - dots[:, None])
        grad_scores += theirs * (_product(w, other_grad.T) - other_dots[None])
        total += shape.scale * _product(grad_scores.astype(other.dtype), other)
        return total + _product(theirs.astype(other.dtype), other_grad)

    start = jnp.zeros((blocks.rows, shape.wide), jnp.float32)
    total = jax.lax.fori_loop(0, pl.cdiv(shape.tokens, blocks.columns), step, start)
    _store(out_ref, shape, example, head, block * blocks.rows, total)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b in float32; of float32 numbers at full precision."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, preferred_element_type=jnp.float32, precision=precision)


def _rows(shape: Shape, example, head, first, count):
    """Where some rows of a head stand in `[b, n, heads, p]`, and which entries of a block of them are there."""
    inside = (first + jnp.arange(count) < shape.tokens)[:, None] & (jnp.arange(shape.wide) < shape.width)[
        None
    ]
    return (example, pl.ds(first, count), head, pl.ds(0, shape.wide)), inside


def _load(ref, shape, example, head, first, count):
    where, inside = _rows(shape, example, head, first, count)
    return triton.load(ref.at[where], mask=inside, other=0)


def _store(ref, shape, example, head, first, value):
    where, inside = _rows(shape, example, head, first, len(value))
    triton.store(ref.at[where], value.astype(ref.dtype), mask=inside)


def attend_shared(tokens, *, causal, mask, lengths, real, scale):
    """`attend` as a row of `attention.KERNELS` has it."""
    if causal or mask is not None or lengths is not None or scale != tokens.shape[-1] ** -0.5:
        raise InputError(
            "attention: kernel pallas takes no causal, mask, lengths or scale; accepted: kernel xla"
        )
    return attend(tokens, tokens.shape[1] if real is None else real)
