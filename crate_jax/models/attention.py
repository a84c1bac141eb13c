"""Attention: one function for every model, with the implementations behind it in one table.

`attend` takes queries, keys and values; `attend_shared` one tensor that is all three, as CRATE's MSSA has it;
`attend_cached` one query and the cache of a decoder. All take the softmax in float32, whatever the tensors are.

A kernel is a row of KERNELS. `auto` stands for the row that AUTO names for a platform; `models.resolve` looks it up when a
model is built, so nothing here asks which devices there are.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from crate_jax import InputError
from crate_jax.models import cudnn, splash, xla
from crate_jax.settings import one_of

# Fewest tokens for which `auto` takes the kernel of a TPU: more than one block of its 128. Of 65 tokens it moves more bytes
# than XLA's form, of 197 and 1,024 fewer (docs/performance.md); lengths between were not tried.
SHORTEST = 129


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool = False,
    mask: jax.Array | None = None,
    lengths: jax.Array | None = None,
    real: int | None = None,
    scale: float | None = None,
    kernel: str = "xla",
) -> jax.Array:
    """For every token, the mean of the values weighted by how well its query matches the keys: softmax(s Q Kᵀ) V.

    Args:
      query: `[b, n, heads, p]`. key, value: `[b, m, heads, p]`. Products run in their dtype, the softmax in float32.
      causal: token i attends to tokens j ≤ i only; n = m.
      mask: bool, broadcast to `[b, heads, n, m]`: the pairs that may attend.
      lengths: int `[b]`: only the first so many tokens of each example are real; n = m. The others are not attended to,
        and their own rows of the result are zero.
      real: only the first so many keys of every example are real, the others are padding that is not attended to. Rows of
        queries are all computed.
      scale: s, by default p^-½.
      kernel: the implementation, a key of KERNELS.
    Returns:
      `[b, n, heads, p]` in the dtype of `value`. A row that may attend to nothing is zero.
    Raises:
      InputError: shapes that do not fit, an unknown kernel.
    """
    _check(query, key, value, causal=causal, mask=mask, lengths=lengths, real=real)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _find(kernel).attend(
        query, key, value, causal=causal, mask=mask, lengths=lengths, real=real, scale=scale
    )


def attend_shared(
    tokens: jax.Array,
    *,
    causal: bool = False,
    mask: jax.Array | None = None,
    lengths: jax.Array | None = None,
    real: int | None = None,
    scale: float | None = None,
    kernel: str = "xla",
) -> jax.Array:
    """`attend` with one tensor as query, key and value: softmax(s W Wᵀ) W, the heads of CRATE's MSSA.

    A form of its own because a kernel then reads one tensor instead of three, and its gradient is one sum.

    Args:
      tokens: W `[b, n, heads, p]`, the tokens' coordinates in each head's subspace.
      causal, mask, lengths, real, scale, kernel: as for `attend`.
    Returns:
      `[b, n, heads, p]` in the dtype of `tokens`.
    Raises:
      InputError: as `attend`.
    """
    _check(tokens, tokens, tokens, causal=causal, mask=mask, lengths=lengths, real=real)
    scale = tokens.shape[-1] ** -0.5 if scale is None else scale
    return _find(kernel).attend_shared(
        tokens, causal=causal, mask=mask, lengths=lengths, real=real, scale=scale
    )


def attend_cached(
    query: jax.Array, keys: jax.Array, values: jax.Array, position: jax.Array, *, softmax: bool = True
) -> jax.Array:
    """Attention of one new token to those decoded before it: softmax(p^-½ q Kᵀ) V over positions 0 … `position`.

    Its work is reading the cache, which every implementation does equally well: there is no choice of kernel.

    Args:
      query: `[b, heads, p]`, of the token at `position`.
      keys, values: caches `[b, heads, n, p]` of static length n, the token's own key and value already in them.
      position: int scalar, may be traced.
      softmax: False takes the mean of the scores over those positions instead.
    Returns:
      `[b, heads, p]` in the dtype of `values`.
    """
    scores = jnp.einsum("bkp,bknp->bkn", query, keys, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    seen = jnp.arange(keys.shape[-2]) <= position
    if softmax:
        weights = jax.nn.softmax(jnp.where(seen, scores, xla.FORBIDDEN), axis=-1)
    else:
        weights = jnp.where(seen, scores, 0) / (position + 1)
    return jnp.einsum("bkn,bknp->bkp", weights.astype(values.dtype), values)


def cache_token(cache: jax.Array, token: jax.Array, position: jax.Array) -> jax.Array:
    """The cache `[b, heads, n, p]` with `token` `[b, heads, p]` written at `position`."""
    return jax.lax.dynamic_update_index_in_dim(cache, token.astype(cache.dtype), position, axis=-2)


class Attend(Protocol):
    """What a kernel implements `attend` with: arguments already checked, nothing left to its default."""

    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        *,
        causal: bool,
        mask: jax.Array | None,
        lengths: jax.Array | None,
        real: int | None,
        scale: float,
    ) -> jax.Array: ...


class AttendShared(Protocol):
    """What a kernel implements `attend_shared` with."""

    def __call__(
        self,
        tokens: jax.Array,
        *,
        causal: bool,
        mask: jax.Array | None,
        lengths: jax.Array | None,
        real: int | None,
        scale: float,
    ) -> jax.Array: ...


class Kernel(NamedTuple):
    """One implementation of attention, the platforms (as JAX names them: cpu, gpu, tpu) that it runs on, and what it takes:
    types, and head widths that are a multiple of `unit`. Tokens padded to a multiple of `unit` it does not pad again.
    `deterministic`: whether its backward pass gives the same bits every time. `shortest`: the fewest tokens for which `auto`
    takes it.
    """

    attend: Attend
    attend_shared: AttendShared
    platforms: tuple[str, ...]
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    unit: int = 1
    deterministic: bool = True
    shortest: int = 1


KERNELS: dict[str, Kernel] = {
    "xla": Kernel(xla.attend, xla.attend_shared, ("cpu", "gpu", "tpu")),
    "xla_split": Kernel(xla.in_pieces(xla.attend), xla.in_pieces(xla.attend_shared), ("cpu",)),
    # cuDNN adds the gradients of queries up in whatever order its blocks end.
    "cudnn": Kernel(
        cudnn.attend, cudnn.attend_shared, ("gpu",), cudnn.DTYPES, cudnn.UNIT, deterministic=False
    ),
    # Padding to 128 tokens is most of what a short image would cost.
    "splash": Kernel(splash.attend, splash.attend_shared, ("tpu",), splash.DTYPES, shortest=SHORTEST),
}
# The kernel that `auto` stands for on each platform, where it takes the model's type and heads; elsewhere xla.
AUTO = {"cpu": "xla_split", "gpu": "cudnn", "tpu": "splash"}


def resolve_kernel(
    name: str, platform: str, dtype: str, head_dim: int, tokens: int, *, deterministic: bool = False
) -> str:
    """The key of KERNELS that `attention_kernel` of a configuration means on a platform, for a type, a width of heads and a
    number of tokens.

    Raises:
      InputError: a kernel that is not there, that does not run on this platform or not on such heads, or that is not
        deterministic where that is asked for.
    """
    if name == "auto":
        name = AUTO.get(platform, "xla")
        kernel = KERNELS[name]
        fits = dtype in kernel.dtypes and head_dim % kernel.unit == 0 and tokens >= kernel.shortest
        return name if fits and kernel.deterministic >= deterministic else "xla"
    one_of("model.attention_kernel", name, ("auto", *KERNELS))
    if platform not in KERNELS[name].platforms:
        running = [other for other, kernel in KERNELS.items() if platform in kernel.platforms]
        raise InputError(
            f"model.attention_kernel: found {name!r}, which does not run on {platform}; accepted there: auto, "
            f"{', '.join(running)}"
        )
    kernel = KERNELS[name]
    if dtype not in kernel.dtypes or head_dim % kernel.unit:
        raise InputError(
            f"model.attention_kernel: found {name!r} for {dtype} and heads {head_dim} wide; accepted by it: "
            f"{', '.join(kernel.dtypes)}, and multiples of {kernel.unit}"
        )
    if deterministic and not kernel.deterministic:
        raise InputError(
            f"model.attention_kernel: found {name!r} with deterministic=True; its gradients differ from run to run; "
            "accepted: auto, xla"
        )
    return name


def _find(kernel: str) -> Kernel:
    one_of("kernel of attention (models.resolve decides what auto is)", kernel, KERNELS)
    return KERNELS[kernel]


def _check(query, key, value, *, causal, mask, lengths, real) -> None:
    b, n, heads, p = query.shape if query.ndim == 4 else (0, 0, 0, 0)
    if query.ndim != 4 or key.shape != value.shape or key.shape != (b, key.shape[1], heads, p):
        raise InputError(
            f"attention: found query {query.shape}, key {key.shape}, value {value.shape}; accepted: [b, n, heads, p], and "
            "[b, m, heads, p] for key and value"
        )
    m = key.shape[1]
    if (causal or lengths is not None) and n != m:
        raise InputError(
            f"attention: found {n} queries and {m} keys; accepted: as many, with causal or lengths"
        )
    if real is not None and not 0 < real <= m:
        raise InputError(f"attention: found {real} real keys of {m}; accepted: 1 to {m}")
    if lengths is not None and lengths.shape != (b,):
        raise InputError(f"lengths of attention: found shape {lengths.shape}; accepted: ({b},)")
    if mask is not None:
        fits = mask.ndim <= 4 and mask.dtype == jnp.bool_
        wanted = (b, heads, n, m)[4 - mask.ndim :] if fits else ()
        if not fits or any(found not in (1, side) for found, side in zip(mask.shape, wanted, strict=True)):
            raise InputError(
                f"mask of attention: found {mask.dtype} {mask.shape}; accepted: bool, broadcast to {(b, heads, n, m)}"
            )
