"""Layers shared by the models: patch embedding, MSSA, ISTA, heads. Tokens are rows, ``[batch, n, d]``.

Initial values follow the released PyTorch code (`torch.nn.Linear` and `kaiming_uniform_` defaults), so that a model
trained here starts from the same distribution. Parameters are float32; `dtype` is the type that matmuls run in.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from crate_jax import InputError, objectives

# torch.nn.LayerNorm: eps 1e-5 and the two-pass variance. flax defaults to 1e-6 and E[x²] − E[x]², which loses digits.
LAYER_NORM_EPS = 1e-5


def resolve_dtype(name: str) -> jnp.dtype:
    """`auto` is bfloat16 on TPU and GPU and float32 on CPU, where XLA gains nothing from bfloat16."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in ("float32", "bfloat16"):
        raise InputError(f"model.dtype: found {name!r}; accepted: auto, float32, bfloat16")
    return jnp.dtype(name)


def uniform_init(bound: float) -> nnx.Initializer:
    """U(−bound, bound)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding  # Placement is decided where the parameters are made, by jit's out_shardings.
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def linear(inputs: int, outputs: int, *, dtype, rngs: nnx.Rngs, use_bias: bool = True) -> nnx.Linear:
    """Affine map with torch.nn.Linear's initial values, U(−1/√inputs, 1/√inputs) for kernel and bias."""
    init = uniform_init(1 / math.sqrt(inputs))
    return nnx.Linear(
        inputs, outputs, use_bias=use_bias, kernel_init=init, bias_init=init, dtype=dtype, rngs=rngs
    )


def layer_norm(dim: int, *, dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm as in PyTorch; statistics are float32 whatever `dtype` is."""
    return nnx.LayerNorm(dim, epsilon=LAYER_NORM_EPS, use_fast_variance=False, dtype=dtype, rngs=rngs)


class RMSNorm(nnx.Module):
    """g·x / √(mean x² + ε): a gain and neither mean nor bias, as released with iGPT. Computed in float32."""

    def __init__(self, dim: int, *, dtype, rngs: nnx.Rngs):
        del rngs  # Nothing here is random.
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones(dim))

    def __call__(self, x: jax.Array) -> jax.Array:
        return _rms_norm(x.astype(jnp.float32), self.scale[...]).astype(self.dtype)


@jax.custom_vjp
def _rms_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    return _rms_norm_forward(x, gain)[0]


def _rms_norm_forward(x, gain):
    rate = jax.lax.rsqrt(_row_dot(x, x) / x.shape[-1] + LAYER_NORM_EPS)
    return x * rate * gain, (x, gain, rate)


def _rms_norm_backward(saved, grad):
    """With y = x·r and ∂y = g·∂out: ∂x = r (∂y − y (y·∂y)/d). Sums over features are written as products of rows, which
    take a ninth of the time of automatic differentiation's on a CPU.
    """
    x, gain, rate = saved
    y, grad_y = x * rate, grad * gain
    grad_gain = jnp.sum(grad * y, axis=range(x.ndim - 1))
    return rate * (grad_y - y * _row_dot(y, grad_y) / x.shape[-1]), grad_gain


_rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


def _row_dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Σ_i a_i b_i over the last axis, which stays with length 1."""
    return jnp.einsum("...i,...i->...", a, b, precision=jax.lax.Precision.HIGHEST)[..., None]


def causal_attention(query: jax.Array, key: jax.Array, value: jax.Array, *, block: int = 256) -> jax.Array:
    """softmax(p^-½ Q Kᵀ + causal mask) V for `[b, n, k, p]`, the softmax in float32.

    Taken a block of queries at a time, each against the keys up to its own end: nearly half of the products, which the mask
    would throw away, are never formed.
    """
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query * query.shape[-1] ** -0.5, key, value))
    ends = [*range(block, query.shape[2], block), query.shape[2]]
    starts = [0, *ends[:-1]]
    attended = [
        _attend(query[:, :, start:end], key[:, :, :end], value[:, :, :end])
        for start, end in zip(starts, ends, strict=True)
    ]
    return jnp.swapaxes(jnp.concatenate(attended, axis=2), 1, 2)


@jax.custom_vjp
def _attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Causal attention of scaled queries `[b, k, i, p]`, the last i of the j positions of keys and values `[b, k, j, p]`."""
    return _attend_forward(query, key, value)[0]


def _attend_forward(query, key, value):
    i, j = query.shape[2], key.shape[2]
    scores = jnp.einsum("bkip,bkjp->bkij", query, key, preferred_element_type=jnp.float32)
    seen = jnp.arange(j) <= jnp.arange(j - i, j)[:, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(jnp.float32).min), axis=-1).astype(value.dtype)
    out = weights @ value
    return out, (query, key, value, weights, out)


def _attend_backward(saved, grad):
    """With A = softmax(S): ∂S = A (∂A − Σ_j A ∂A), and the sum over j is that of ∂O·O over the features, p numbers for j.

    Automatic differentiation sums over j, which XLA does ten times slower than all else here on a CPU.
    """
    query, key, value, weights, out = saved
    swap = partial(jnp.swapaxes, axis1=-1, axis2=-2)
    total = _row_dot(grad.astype(jnp.float32), out.astype(jnp.float32))
    grad_weights = jnp.einsum("bkip,bkjp->bkij", grad, value, preferred_element_type=jnp.float32)
    grad_scores = (weights * (grad_weights - total)).astype(query.dtype)
    return grad_scores @ key, swap(swap(query) @ grad_scores), swap(swap(grad) @ weights)


_attend.defvjp(_attend_forward, _attend_backward)


def attend_cached(query: jax.Array, keys: jax.Array, values: jax.Array, position: jax.Array) -> jax.Array:
    """softmax(p^-½ q Kᵀ) V of one token over the cached positions 0 … `position`, its own included.

    query `[b, k, p]`, keys and values `[b, k, p, n]` of static length n → `[b, k, p]`; the softmax is float32. Positions
    come last: both products then read the cache in the order it lies in, which takes half the time on a CPU.
    """
    scores = jnp.einsum("bkp,bkpn->bkn", query, keys, preferred_element_type=jnp.float32)
    seen = jnp.arange(keys.shape[-1]) <= position
    scores = jnp.where(seen, scores * query.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return jnp.einsum("bkn,bkpn->bkp", weights, values)


def cache_token(cache: jax.Array, token: jax.Array, position: jax.Array) -> jax.Array:
    """The cache `[b, k, p, n]` with `token` `[b, k, p]` written at `position`."""
    return jax.lax.dynamic_update_index_in_dim(cache, token.astype(cache.dtype), position, axis=-1)


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
        return self.norm_out(self.projection(self.norm_in(patchify(images, self.patch_size))))


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


class MSSA(nnx.Module):
    """Multi-head subspace self-attention, one bases tensor U serving as query, key and value (CRATE eq. 12, Alg. 2).

    MSSA(Z) = Σ_k softmax(p^-½ (Z U_k)(Z U_k)ᵀ) (Z U_k) W_k + b. The released code learns W where the derivation has
    U_kᵀ; `bases` is `[k, d, p]`, `output` `[k, p, d]`. With `causal` a token attends to itself and those before it.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, *, causal: bool = False, dtype, rngs: nnx.Rngs):
        self.causal, self.dtype = causal, dtype
        bases_init = uniform_init(1 / math.sqrt(dim))
        output_init = uniform_init(1 / math.sqrt(heads * head_dim))
        self.bases = nnx.Param(bases_init(rngs.params(), (heads, dim, head_dim)))
        self.output = nnx.Param(output_init(rngs.params(), (heads, head_dim, dim)))
        self.bias = nnx.Param(output_init(rngs.params(), (dim,)))

    def __call__(self, z: jax.Array) -> jax.Array:
        bases, output, bias = (p[...].astype(self.dtype) for p in (self.bases, self.output, self.bias))
        return objectives.mssa(z.astype(self.dtype), bases, output, causal=self.causal) + bias

    def decode(self, z: jax.Array, cache: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The update of one token `[b, d]`, given those before it; the cache `[b, k, p, n]` holds their projections.

        One tensor is query, key and value, so the cache is half as large as a transformer's.
        """
        projected = self.project(z[:, None])[:, :, 0]
        cache = cache_token(cache, projected, position)
        attended = attend_cached(projected, cache, cache, position)
        output, bias = self.output[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return jnp.einsum("bkp,kpd->bd", attended, output) + bias, cache

    def project(self, z: jax.Array) -> jax.Array:
        """Coordinates of the tokens in every subspace, `[b, n, d]` → `[b, k, n, p]`."""
        return jnp.einsum("bnd,kdp->bknp", z.astype(self.dtype), self.bases[...].astype(self.dtype))


class ISTA(nnx.Module):
    """One proximal step on the LASSO with a learned complete dictionary (CRATE eq. 17), in the one-matmul form.

    relu(z + η z (D − DᵀD) − ηλ), D `[d, d]`: exactly the released relu(z + η(Dᵀz − DᵀDz) − ηλ), with the d×d matrix
    formed once for all tokens.
    """

    def __init__(self, dim: int, *, step_size: float, penalty: float, dtype, rngs: nnx.Rngs):
        self.step_size, self.penalty, self.dtype = step_size, penalty, dtype
        # torch.nn.init.kaiming_uniform_ with its default gain √2.
        self.dictionary = nnx.Param(uniform_init(math.sqrt(6 / dim))(rngs.params(), (dim, dim)))

    def __call__(self, z: jax.Array) -> jax.Array:
        return objectives.ista_step(
            z.astype(self.dtype), self.dictionary[...], step_size=self.step_size, penalty=self.penalty
        )
