"""Attention as plain array operations, which XLA compiles for every device."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from crate_jax.models.layers import row_dot
from crate_jax.models.partition import on_mesh

# Queries that causal attention takes at a time, each block against the keys up to its own end: nearly half of the products,
# which the mask would throw away, are never formed.
BLOCK = 256
# XLA for CPUs takes a product of many small matrices on one core, but several such products at once: a batch is taken in so
# many pieces where its scores have at least so many bytes.
PIECES, LARGE = 4, 2**22
# What forbidden scores are replaced by. Finite, so that a row with nothing to attend to is no NaN.
FORBIDDEN = jnp.finfo(jnp.float32).min


def attend(query, key, value, *, causal, mask, lengths, real, scale):
    """See `attention.attend`."""
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    allowed = _allowed(mask, lengths, real, key.shape[1])
    return _finish(_attend(*heads_first, allowed, causal, scale), lengths)


def attend_shared(tokens, *, causal, mask, lengths, real, scale):
    """See `attention.attend_shared`."""
    allowed = _allowed(mask, lengths, real, tokens.shape[1])
    return _finish(_attend_shared(jnp.swapaxes(tokens, 1, 2), allowed, causal, scale), lengths)


def in_pieces(attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`attend` of pieces of the batch, side by side; whole where there is a mask or are lengths, or the scores are few."""

    def split(*operands, mask, lengths, **options):
        form = partial(attend, mask=mask, lengths=lengths, **options)
        if mask is not None or lengths is not None:
            return form(*operands)

        def call(*operands):
            examples, n, heads, _ = operands[0].shape
            if examples % PIECES or 4 * examples * heads * n * operands[-1].shape[1] < LARGE:
                return form(*operands)
            pieces = zip(*(jnp.split(x, PIECES) for x in operands), strict=True)
            return jnp.concatenate([form(*piece) for piece in pieces])

        return on_mesh(call, ("tokens",) * len(operands), "tokens", operands, None)

    return split


def _allowed(
    mask: jax.Array | None, lengths: jax.Array | None, real: int | None, keys: int
) -> jax.Array | None:
    """Which pairs may attend by mask, lengths and the number of real keys, bool of four axes; None: all."""
    found = None
    if mask is not None:
        found = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    for end in (lengths, real):
        if end is not None:
            allowed = (jnp.arange(keys) < jnp.reshape(end, (-1, 1)))[:, None, None, :]
            found = allowed if found is None else found & allowed
    return found


def _finish(out: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """`[b, heads, n, p]` → `[b, n, heads, p]`, with the rows of tokens that are not real set to zero."""
    out = jnp.swapaxes(out, 1, 2)
    if lengths is None:
        return out
    real = jnp.arange(out.shape[1]) < lengths[:, None]
    return jnp.where(real[:, :, None, None], out, 0)


# Tensors are [b, heads, n, p] from here on. Its backward pass is written out because automatic differentiation
# sums over the keys where p features would do, and keeps three score matrices for one. Where one tensor is query and key,
# ∂Q + ∂K = s (∂S + ∂Sᵀ) W is one product instead of two; of bfloat16 on a GPU, reading ∂S along both axes would cost more.


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(query, key, value, allowed, causal, scale):
    return _attend_forward(query, key, value, allowed, causal, scale)[0]


def _attend_forward(query, key, value, allowed, causal, scale):
    out, weights = _forward(query, key, value, allowed, causal, scale)
    return out, (query, key, value, weights, out)


def _attend_backward(causal, scale, saved, grad):
    query, key, value, weights, out = saved
    return *_backward(query, key, value, weights, out, grad, causal, scale), None


_attend.defvjp(_attend_forward, _attend_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _attend_shared(tokens, allowed, causal, scale):
    return _attend_shared_forward(tokens, allowed, causal, scale)[0]


def _attend_shared_forward(tokens, allowed, causal, scale):
    out, weights = _forward(tokens, tokens, tokens, allowed, causal, scale)
    return out, (tokens, weights, out)


def _attend_shared_backward(causal, scale, saved, grad):
    tokens, weights, out = saved
    if len(weights) > 1 or tokens.dtype != jnp.float32:
        return sum(_backward(tokens, tokens, tokens, weights, out, grad, causal, scale)), None
    scores = _score_gradient(weights[0], grad, tokens, _total(grad, out), scale)
    scores = (scores + jnp.swapaxes(scores, -1, -2)).astype(tokens.dtype)
    return scores @ tokens + jnp.swapaxes(weights[0], -1, -2) @ grad, None


_attend_shared.defvjp(_attend_shared_forward, _attend_shared_backward)


def _blocks(queries: int, keys: int, causal: bool) -> list[tuple[int, int, int]]:
    """(first query, end of queries, end of keys) of each block."""
    if not causal:
        return [(0, queries, keys)]
    return [
        (start, min(start + BLOCK, queries), min(start + BLOCK, queries))
        for start in range(0, queries, BLOCK)
    ]


def _part(allowed: jax.Array, start: int, end: int, keys: int) -> jax.Array:
    """The rows start … end and the first keys of what may be a broadcast mask."""
    rows = allowed if allowed.shape[2] == 1 else allowed[:, :, start:end]
    return rows if rows.shape[3] == 1 else rows[:, :, :, :keys]


def _forward(query, key, value, allowed, causal, scale):
    """The attended values `[b, heads, n, p]`, and softmax(S) of each block in the dtype of the values."""
    outs, saved = [], []
    for start, end, keys in _blocks(query.shape[2], key.shape[2], causal):
        scores = scale * jnp.einsum(
            "bkip,bkjp->bkij", query[:, :, start:end], key[:, :, :keys], preferred_element_type=jnp.float32
        )
        if causal:
            earlier = jnp.arange(keys) <= jnp.arange(start, end)[:, None]
            scores = jnp.where(earlier, scores, FORBIDDEN)
        if allowed is None:
            weights = jax.nn.softmax(scores, axis=-1)
        else:
            permitted = _part(allowed, start, end, keys)
            permitted = permitted & earlier if causal else permitted
            weights = jax.nn.softmax(jnp.where(permitted, scores, FORBIDDEN), axis=-1)
            # A row that may attend to nothing would be the mean of all.
            weights = jnp.where(permitted, weights, 0)
        saved.append(weights.astype(value.dtype))
        outs.append(saved[-1] @ value[:, :, :keys])
    return jnp.concatenate(outs, axis=2), tuple(saved)


def _backward(query, key, value, weights, out, grad, causal, scale):
    """With A = softmax(S), S = s Q Kᵀ, O = A V: ∂V = Aᵀ ∂O, ∂S = A (∂O Vᵀ − Σ_j A_j (∂O Vᵀ)_j), ∂Q = s ∂S K, ∂K = s ∂Sᵀ Q.

    The sum over the keys j is that of ∂O·O over the features, p numbers for j; XLA does the former ten times slower than all
    else here on a CPU.
    """
    swap = partial(jnp.swapaxes, axis1=-1, axis2=-2)
    total = _total(grad, out)
    grad_query, grad_key, grad_value = [], [], []
    for (start, end, keys), attention in zip(
        _blocks(query.shape[2], key.shape[2], causal), weights, strict=True
    ):
        rows = grad[:, :, start:end]
        grad_scores = _score_gradient(attention, rows, value[:, :, :keys], total[:, :, start:end], scale)
        grad_scores = grad_scores.astype(query.dtype)
        grad_query.append(grad_scores @ key[:, :, :keys])
        grad_key.append(swap(grad_scores) @ query[:, :, start:end])
        grad_value.append(swap(attention) @ rows)
    return jnp.concatenate(grad_query, axis=2), _overlay(grad_key), _overlay(grad_value)


def _total(grad, out):
    """Σ_p ∂O O `[b, heads, n, 1]` in float32."""
    return row_dot(grad.astype(jnp.float32), out.astype(jnp.float32), out.dtype)


def _score_gradient(attention, grad, value, total, scale):
    """s ∂S in float32."""
    products = jnp.einsum("bkip,bkjp->bkij", grad, value, preferred_element_type=jnp.float32)
    return scale * (attention * (products - total))


def _overlay(parts: list[jax.Array]) -> jax.Array:
    """The sum of blocks `[b, heads, j, p]` of growing length j, each padded with zeros to the last one's."""
    length = parts[-1].shape[2]
    padded = [jnp.pad(part, ((0, 0), (0, 0), (0, length - part.shape[2]), (0, 0))) for part in parts]
    return sum(padded[1:], padded[0])
