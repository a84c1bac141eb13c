"""Layers shared by the models: patch embedding, MSSA, ISTA, heads. Tokens are rows, ``[batch, n, d]``.

Initial values follow the released PyTorch code (`torch.nn.Linear` and `kaiming_uniform_` defaults), so that a model
trained here starts from the same distribution. Parameters are float32; `dtype` is the type that matmuls run in.
"""

import math
from collections.abc import Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from crate_jax import InputError, objectives

# torch.nn.LayerNorm: eps 1e-5 and the two-pass variance. flax defaults to 1e-6 and E[x²] − E[x]², which loses digits.
LAYER_NORM_EPS = 1e-5


def choose(field: str, value: str, accepted: Collection[str]) -> None:
    """Raises InputError unless `value`, of the configuration's `field`, is one of those accepted."""
    if value not in accepted:
        raise InputError(f"{field}: found {value!r}; accepted: {', '.join(accepted)}")


def resolve_dtype(name: str) -> jnp.dtype:
    """`auto` is bfloat16 on TPU and GPU and float32 on CPU, where XLA gains nothing from bfloat16."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    choose("model.dtype", name, ("float32", "bfloat16", "auto"))
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


def layer_norm(dim: int, *, eps: float = LAYER_NORM_EPS, dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm as in PyTorch; statistics are float32 whatever `dtype` is."""
    return nnx.LayerNorm(dim, epsilon=eps, use_fast_variance=False, dtype=dtype, rngs=rngs)


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
        # One matmul of matrices: with the batch as an axis of its own XLA transposes, for the gradient of the kernel, what
        # lies right already.
        leading = x.shape[: x.ndim - len(self.inputs)]
        rows = x.astype(self.dtype).reshape(-1, math.prod(self.inputs))
        # The output axes stay apart: merged, a mesh that splits the heads would have to gather the kernel.
        kernel = self.kernel[...].astype(self.dtype).reshape(rows.shape[1], *self.outputs)
        out = jnp.tensordot(rows, kernel, 1).reshape(*leading, *self.outputs)
        return out if self.bias is None else out + self.bias[...].astype(self.dtype)


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


def attend_cached(
    query: jax.Array, keys: jax.Array, values: jax.Array, position: jax.Array, *, softmax: bool = True
) -> jax.Array:
    """softmax(p^-½ q Kᵀ) V of one token over the cached positions 0 … `position`, its own included.

    Without the softmax its place is taken by the mean over those positions.

    query `[b, k, p]`, keys and values `[b, k, n, p]` of static length n → `[b, k, p]`; the softmax is float32.
    """
    query = query * query.shape[-1] ** -0.5
    scores = jnp.einsum("bkp,bknp->bkn", query, keys, preferred_element_type=jnp.float32)
    seen = jnp.arange(keys.shape[-2]) <= position
    if softmax:
        weights = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(jnp.float32).min), axis=-1)
    else:
        weights = jnp.where(seen, scores, 0) / (position + 1)
    return jnp.einsum("bkn,bknp->bkp", weights.astype(values.dtype), values)


def cache_token(cache: jax.Array, token: jax.Array, position: jax.Array) -> jax.Array:
    """The cache `[b, k, n, p]` with `token` `[b, k, p]` written at `position`."""
    return jax.lax.dynamic_update_index_in_dim(cache, token.astype(cache.dtype), position, axis=-2)


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


class MSSA(nnx.Module):
    """Multi-head subspace self-attention, one bases tensor U serving as query, key and value (CRATE eq. 12, Alg. 2).

    MSSA(Z) = Σ_k softmax(p^-½ (Z U_k)(Z U_k)ᵀ) (Z U_k) O_k, with `bases` U `[k, d, p]` and O `[k, p, d]`. With `causal` a
    token attends to itself and those before it.

    Args:
      output: what O is.
        free: a learned `output`, and a learned bias (use_bias); what the released code has where the derivation has U_kᵀ.
        tied: β U_kᵀ with β = p/(N ε²), as derived (eq. 12).
        transposed: the d × d matrix [U_1 … U_K] where `tied` (without β) has its transpose.
        fixed: the random matrix that `free` starts from, never trained.
        identity: the heads side by side, no matrix at all.
      attention: softmax, or linear: the mean of the scores in its place (see `objectives.mssa`).
      num_tokens, eps_sq: N and ε²; for `tied`.
    """

    OUTPUTS = ("free", "tied", "transposed", "fixed", "identity")
    ATTENTIONS = ("softmax", "linear")

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        output: str = "free",
        attention: str = "softmax",
        num_tokens: int = 1,
        eps_sq: float = 0.5,
        use_bias: bool = True,
        causal: bool = False,
        dtype,
        rngs: nnx.Rngs,
    ):
        choose("model.output", output, self.OUTPUTS)
        choose("model.attention", attention, self.ATTENTIONS)
        if output in ("transposed", "identity") and heads * head_dim != dim:
            raise InputError(
                f"model.output: {output!r} needs model.heads × model.head_dim = model.dim; "
                f"found {heads} × {head_dim} and {dim}"
            )
        self.kind, self.softmax, self.causal, self.dtype = output, attention == "softmax", causal, dtype
        self.beta = head_dim / (num_tokens * eps_sq)
        free, init = output == "free", uniform_init(1 / math.sqrt(heads * head_dim))
        shape = (heads, head_dim, dim)
        self.bases = nnx.Param(uniform_init(1 / math.sqrt(dim))(rngs.params(), (heads, dim, head_dim)))
        self.output = nnx.Param(init(rngs.params(), shape)) if free else None
        self.fixed_output = nnx.Param(init(rngs.params(), shape)) if output == "fixed" else None
        self.bias = nnx.Param(init(rngs.params(), (dim,))) if free and use_bias else None

    def __call__(self, z: jax.Array) -> jax.Array:
        bases = self.bases[...].astype(self.dtype)
        out = objectives.mssa(
            z.astype(self.dtype), bases, self._output(), softmax=self.softmax, causal=self.causal
        )
        return self._add_bias(out)

    def decode(self, z: jax.Array, cache: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The update of one token `[b, d]`, given those before it; the cache `[b, k, n, p]` holds their projections.

        One tensor is query, key and value, so the cache is half as large as a transformer's.
        """
        projected = self.project(z[:, None])[:, :, 0]
        cache = cache_token(cache, projected, position)
        attended = attend_cached(projected, cache, cache, position, softmax=self.softmax)
        return self._add_bias(jnp.einsum("bkp,kpd->bd", attended, self._output())), cache

    def project(self, z: jax.Array) -> jax.Array:
        """Coordinates of the tokens in every subspace, `[b, n, d]` → `[b, k, n, p]`."""
        return jnp.einsum("bnd,kdp->bknp", z.astype(self.dtype), self.bases[...].astype(self.dtype))

    def _output(self) -> jax.Array:
        """O `[k, p, d]`."""
        bases = self.bases[...]
        heads, dim, head_dim = bases.shape
        output = {
            "free": lambda: self.output[...],
            "tied": lambda: self.beta * jnp.swapaxes(bases, 1, 2),
            "transposed": lambda: jnp.swapaxes(bases, 0, 1).reshape(heads, head_dim, dim),
            "fixed": lambda: jax.lax.stop_gradient(self.fixed_output[...]),
            "identity": lambda: jnp.eye(dim).reshape(heads, head_dim, dim),
        }[self.kind]()
        return output.astype(self.dtype)

    def _add_bias(self, x: jax.Array) -> jax.Array:
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)


class ISTA(nnx.Module):
    """Sparsification with a learned complete dictionary D `[d, d]`; tokens are rows, so z D is the papers' Dᵀz.

    Args:
      step_size, penalty: η and λ; with `learned` the values that two parameters start from.
      form: the step.
        released: relu(z + η z (D − DᵀD) − ηλ), one proximal step on the LASSO from the tokens themselves (CRATE eq. 17),
          exactly the released relu(z + η(Dᵀz − DᵀDz) − ηλ) with the d×d matrix formed once for all tokens.
        orthogonal: relu((1 + 4/(9(1 + α))) z D − 4λ/(9α)), α = d/(N ε²): the step derived for an orthogonal D (eq. 92),
          which D is at the start. There is no η.
        unrolled: `steps` proximal steps from zero, z⁰ = 0, zⁱ⁺¹ = relu(zⁱ + η (x − zⁱDᵀ) D − ηλ).
      num_tokens, eps_sq: N and ε²; for `orthogonal`.
    """

    FORMS = ("released", "orthogonal", "unrolled")

    def __init__(
        self,
        dim: int,
        *,
        step_size: float,
        penalty: float,
        form: str = "released",
        steps: int = 2,
        num_tokens: int = 1,
        eps_sq: float = 0.5,
        learned: bool = False,
        dtype,
        rngs: nnx.Rngs,
    ):
        choose("model.ista", form, self.FORMS)
        self.form, self.steps, self.dtype = form, steps, dtype
        self.alpha = dim / (num_tokens * eps_sq)
        # torch.nn.init.kaiming_uniform_ with its default gain √2.
        init = nnx.initializers.orthogonal() if form == "orthogonal" else uniform_init(math.sqrt(6 / dim))
        self.dictionary = nnx.Param(init(rngs.params(), (dim, dim)))
        self.step_size = scalar(step_size, learned=learned and form != "orthogonal")
        self.penalty = scalar(penalty, learned=learned)

    def __call__(self, z: jax.Array) -> jax.Array:
        z, dictionary = z.astype(self.dtype), self.dictionary[...]
        penalty = number(self.penalty)
        if self.form == "orthogonal":
            moved = (1 + 4 / (9 * (1 + self.alpha))) * (z @ dictionary.astype(self.dtype))
            return objectives.soft_threshold(moved, 4 * penalty / (9 * self.alpha), nonnegative=True)
        constants = {"step_size": number(self.step_size), "penalty": penalty}
        if self.form == "unrolled":
            return objectives.ista(z, dictionary, steps=self.steps, **constants)
        return objectives.ista_step(z, dictionary, **constants)
