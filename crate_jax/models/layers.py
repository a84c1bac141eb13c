"""Layers that the models share: linear maps, norms, patch embedding. Tokens are rows, ``[batch, n, d]``.

Initial values follow the released PyTorch code (`torch.nn.Linear` and `kaiming_uniform_` defaults), so that a model
trained here starts from the same distribution. Parameters are float32; `dtype` is the type that matmuls run in.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

# torch.nn.LayerNorm: eps 1e-5 and the two-pass variance. flax defaults to 1e-6 and E[x²] − E[x]², which loses digits of a
# float32 input (for bfloat16 see `_mean_and_rate`).
LAYER_NORM_EPS = 1e-5


def uniform_init(bound: float) -> nnx.Initializer:
    """U(−bound, bound)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding  # Placement is decided where the parameters are made, by jit's out_shardings.
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def rows(x: jax.Array) -> jax.Array:
    """`[…, d]` as a matrix of rows. With the batch as an axis of its own in a product, XLA transposes for the gradient of
    the kernel what lies right already.
    """
    return x.reshape(-1, x.shape[-1])


class Dropout(NamedTuple):
    """Sets a random share `rate` of entries to zero and scales the others by 1/(1 − rate), so that the mean stays.

    `key` decides which; each place that drops entries takes a number of its own.
    """

    rate: float
    key: jax.Array

    def at(self, number: int | jax.Array) -> "Dropout":
        """The dropout of layer `number`."""
        return Dropout(self.rate, jax.random.fold_in(self.key, number))

    def __call__(self, x: jax.Array, number: int = 0) -> jax.Array:
        kept = jax.random.bernoulli(jax.random.fold_in(self.key, number), 1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), 0).astype(x.dtype)


def drop(x: jax.Array, dropout: Dropout | None, number: int = 0) -> jax.Array:
    """`x` with entries dropped, or as it is without dropout."""
    return x if dropout is None else dropout(x, number)


class Linear(nnx.Linear):
    """nnx.Linear on rows."""

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        return super().__call__(rows(x)).reshape(*x.shape[:-1], self.out_features)


def linear(inputs: int, outputs: int, *, dtype, rngs: nnx.Rngs, use_bias: bool = True) -> Linear:
    """Affine map with torch.nn.Linear's initial values, U(−1/√inputs, 1/√inputs) for kernel and bias."""
    init = uniform_init(1 / math.sqrt(inputs))
    return Linear(
        inputs, outputs, use_bias=use_bias, kernel_init=init, bias_init=init, dtype=dtype, rngs=rngs
    )


def layer_norm(dim: int, *, eps: float = LAYER_NORM_EPS, dtype, rngs: nnx.Rngs) -> "LayerNorm":
    """LayerNorm as in PyTorch; statistics are float32 whatever `dtype` is."""
    return LayerNorm(dim, epsilon=eps, use_fast_variance=False, dtype=dtype, rngs=rngs)


class LayerNorm(nnx.LayerNorm):
    """nnx.LayerNorm with its backward pass written out: of a bfloat16 input it keeps just that, where automatic
    differentiation keeps float32 copies, and on a CPU it takes less time (docs/performance.md).
    """

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        if self.scale is None or self.bias is None:
            return super().__call__(x)
        # On rows: XLA is free to lay out three axes so that the next product has to transpose them.
        length = x.shape[-2] if x.ndim > 1 else 1
        out = _layer_norm(rows(x), self.scale[...], self.bias[...], self.epsilon, self.dtype, length)
        return out.reshape(x.shape)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _layer_norm(x: jax.Array, gain: jax.Array, bias: jax.Array, eps: float, dtype, length: int) -> jax.Array:
    # x is a matrix of rows, here and in `_rms_norm`; `length` of them are one example.
    del length
    mean, rate = _mean_and_rate(x, eps, dtype)
    return ((x.astype(jnp.float32) - mean) * rate * gain + bias).astype(dtype)


def _mean_and_rate(x, eps, dtype):
    """Mean and 1/√(variance + ε) of each row. For a bfloat16 model from one reading of it: E[x²] − E[x]² loses digits where
    the mean is large against the deviation, but far fewer than the entries, being bfloat16, have lost by then.
    """
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    if dtype == jnp.float32:
        return mean, jax.lax.rsqrt(jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True) + eps)
    variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True) - jnp.square(mean)
    return mean, jax.lax.rsqrt(jnp.maximum(variance, 0) + eps)


def _layer_norm_forward(x, gain, bias, eps, dtype, length):
    del length
    mean, rate = _mean_and_rate(x, eps, dtype)
    if dtype != jnp.float32:
        # Left to itself XLA takes the mean again wherever it is used, and then writes y ∂out in float32 to sum its columns.
        mean, rate = jax.lax.optimization_barrier((mean, rate))
    return ((x.astype(jnp.float32) - mean) * rate * gain + bias).astype(dtype), (x, gain, mean, rate)


def _layer_norm_backward(eps, dtype, length, saved, grad):
    """With y = (x − m)·r and ∂y = g·∂out: ∂x = r (∂y − mean ∂y − y mean(y ∂y))."""
    del eps, dtype
    x, gain, mean, rate = saved
    y, grad = (x.astype(jnp.float32) - mean) * rate, grad.astype(jnp.float32)
    grad_y = grad * gain
    centred = grad_y - jnp.mean(grad_y, axis=-1, keepdims=True)
    grad_x = rate * (centred - y * jnp.mean(grad_y * y, axis=-1, keepdims=True))
    return grad_x.astype(x.dtype), *_column_sums(length, grad * y, grad)


def _column_sums(length: int, *matrices: jax.Array) -> list[jax.Array]:
    """Σ over the rows of each float32 matrix, `length` of which are one example."""

    def apart(*matrices):
        return [jnp.sum(matrix, axis=0) for matrix in matrices]

    return jax.lax.platform_dependent(*matrices, cuda=partial(_sums_together, length), default=apart)


def _sums_together(length: int, *matrices: jax.Array) -> list[jax.Array]:
    """One reduction of all matrices: apart, XLA for GPUs reads for each anew what they are computed from, while XLA for TPUs
    reads more for one. It stays within examples: a mesh gathers what several arrays are reduced to, and adds up what one is.
    """
    examples = [matrix.reshape(-1, length, matrix.shape[-1]) for matrix in matrices]

    def add(some, others):
        return [one + other for one, other in zip(some, others, strict=True)]

    return [jnp.sum(one, axis=0) for one in jax.lax.reduce(examples, [0.0] * len(examples), add, (1,))]


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class RMSNorm(nnx.Module):
    """g·x / √(mean x² + ε): a gain and neither mean nor bias, as released with iGPT. Computed in float32."""

    def __init__(self, dim: int, *, dtype, rngs: nnx.Rngs):
        del rngs  # Nothing here is random.
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones(dim))

    def __call__(self, x: jax.Array) -> jax.Array:
        return _rms_norm(rows(x), self.scale[...]).astype(self.dtype).reshape(x.shape)


@jax.custom_vjp
def _rms_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    return (x.astype(jnp.float32) * _rate(x) * gain).astype(x.dtype)


def _rate(x):
    wide = x.astype(jnp.float32)
    return jax.lax.rsqrt(row_dot(wide, wide, x.dtype) / x.shape[-1] + LAYER_NORM_EPS)


def _rms_norm_forward(x, gain):
    rate = _rate(x)
    if x.dtype != jnp.float32:
        rate = jax.lax.optimization_barrier(rate)  # As in `_layer_norm_forward`.
    return (x.astype(jnp.float32) * rate * gain).astype(x.dtype), (x, gain, rate)


def _rms_norm_backward(saved, grad):
    """With y = x·r and ∂y = g·∂out: ∂x = r (∂y − y (y·∂y)/d). Sums over features are written as products of rows, which
    take a ninth of the time of automatic differentiation's on a CPU.
    """
    x, gain, rate = saved
    grad = grad.astype(jnp.float32)
    y, grad_y = x.astype(jnp.float32) * rate, grad * gain
    grad_x = rate * (grad_y - y * row_dot(y, grad_y, x.dtype) / x.shape[-1])
    return grad_x.astype(x.dtype), jnp.sum(grad * y, axis=0)


_rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


def row_dot(a: jax.Array, b: jax.Array, dtype) -> jax.Array:
    """Σ_i a_i b_i of float32 numbers over the last axis, which stays with length 1. `dtype` is what a model computes in.

    As a product of rows it takes a ninth of the time of a sum on a CPU, where models are float32. On a GPU a and b would be
    written before they are multiplied, while a sum takes them as they are computed.
    """
    if dtype != jnp.float32:
        return jnp.sum(a * b, axis=-1, keepdims=True)
    return jnp.einsum("...i,...i->...", a, b, precision=jax.lax.Precision.HIGHEST)[..., None]


def normal_param(shape: tuple[int, ...], stddev: float, rngs: nnx.Rngs) -> nnx.Param:
    """N(0, stddev²); zeros for 0."""
    return nnx.Param(stddev * jax.random.normal(rngs.params(), shape) if stddev else jnp.zeros(shape))


class Dense(nnx.Module):
    """x W (+ b) from the features `inputs` to the axes `outputs`; `kernel` is `[*inputs, *outputs]`.

    Heads are axes of the kernel, so that a mesh can split them, and one matmul takes all of them together.
    """

    def __init__(self, inputs: tuple[int, ...], outputs: tuple[int, ...], *, stddev, use_bias, dtype, rngs):
        self.inputs, self.outputs, self.dtype = inputs, outputs, dtype
        self.kernel = normal_param((*inputs, *outputs), stddev, rngs)
        self.bias = nnx.Param(jnp.zeros(outputs)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.product(x)
        return out if self.bias is None else out + self.bias[...].astype(self.dtype)

    def product(self, x: jax.Array) -> jax.Array:
        """x W alone."""
        leading = x.shape[: x.ndim - len(self.inputs)]
        matrix = x.astype(self.dtype).reshape(-1, math.prod(self.inputs))
        # The output axes stay apart: merged, a mesh that splits the heads would have to gather the kernel.
        kernel = self.kernel[...].astype(self.dtype).reshape(matrix.shape[1], *self.outputs)
        return jnp.tensordot(matrix, kernel, 1).reshape(*leading, *self.outputs)


def gelu_dense(dense: Dense, x: jax.Array) -> jax.Array:
    """gelu(x W + b), the exact gelu(h) = h Φ(h). Where models are not float32 only the product x W is kept for the backward
    pass: the sum with b and what gelu is made of take longer to write and read than to compute again.
    """

    def activate(product, bias):
        return jax.nn.gelu(product if bias is None else product + bias, approximate=False)

    bias = None if dense.bias is None else dense.bias[...].astype(dense.dtype)
    return (activate if dense.dtype == jnp.float32 else jax.checkpoint(activate))(dense.product(x), bias)


def split_heads(projected: jax.Array) -> list[jax.Array]:
    """Queries, keys and values `[…, heads, p]` of `[…, 3, heads, p]`."""
    # Split, not indexed: the gradient of a split is one concatenation, that of three indices a sum of three paddings.
    return [part.squeeze(-3) for part in jnp.split(projected, 3, axis=-3)]


class PatchEmbed(nnx.Module):
    """Images to tokens: cut into patches, LayerNorm, linear map, LayerNorm.

    `[b, h, w, c]` → `[b, (h/p)·(w/p), d]`; a patch is flattened in the order (row, column, channel).
    """

    def __init__(self, patch_size: int, channels: int, dim: int, *, dtype, rngs: nnx.Rngs):
        self.patch_size = patch_size
        patch_dim = patch_size * patch_size * channels
        self.norm_in = layer_norm(patch_dim, dtype=dtype, rngs=rngs)
        self.projection = linear(patch_dim, dim, dtype=dtype, rngs=rngs)
        self.norm_out = layer_norm(dim, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        patches = patchify(images, self.patch_size)
        tokens = self.norm_out(self.projection(self.norm_in(rows(patches))))
        return tokens.reshape(*patches.shape[:2], -1)


class PatchProjection(nnx.Module):
    """Images to tokens by a linear map of patches alone: the convolution with stride p of ViT. As `PatchEmbed` otherwise.

    Args:
      gain: kernels start as N(0, gain/(p²c)).
    """

    def __init__(self, patch_size: int, channels: int, dim: int, *, gain: float, dtype, rngs: nnx.Rngs):
        self.patch_size = patch_size
        patch_dim = patch_size * patch_size * channels
        stddev = math.sqrt(gain / patch_dim)
        self.projection = Dense((patch_dim,), (dim,), stddev=stddev, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.projection(patchify(images, self.patch_size))


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """`[b, h, w, c]` → `[b, (h/p)·(w/p), p·p·c]`, patches in row-major order."""
    b, h, w, c = images.shape
    p = patch_size
    x = images.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, (h // p) * (w // p), p * p * c)


def unpatchify(patches: jax.Array, patch_size: int, channels: int) -> jax.Array:
    """The square images that `patchify` cuts into these patches, `[b, n, p·p·c]` → `[b, √n·p, √n·p, c]`."""
    side = math.isqrt(patches.shape[1])
    x = patches.reshape(len(patches), side, side, patch_size, patch_size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(patches), side * patch_size, side * patch_size, channels)


def scalar(value: float, *, learned: bool) -> Any:
    """A number, or a parameter that starts as one; read with `number`."""
    return nnx.Param(jnp.asarray(value, jnp.float32)) if learned else value


def number(value: Any) -> Any:
    """What `scalar` holds."""
    return value[...] if isinstance(value, nnx.Param) else value
