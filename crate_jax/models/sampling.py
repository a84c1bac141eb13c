"""Drawing tokens from a causal model: one compiled program, whose loop reads the cache as far as it is full."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from crate_jax import InputError
from crate_jax.models import decoding
from crate_jax.models.gpt import TokenConfig
from crate_jax.models.model import Cache, Model, Params
from crate_jax.models.partition import constrain


class SamplingParams(NamedTuple):
    """How a token is drawn from logits: softmax(logits / temperature), of the `top_k` likeliest tokens only, of the fewest
    tokens that together have probability `top_p` only (the nucleus); None is no restriction.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def check(self, vocab_size: int) -> None:
        """Raises InputError for numbers that mean nothing."""
        if not self.temperature > 0:
            raise InputError(f"temperature: found {self.temperature}; accepted: a number above 0")
        if self.top_k is not None and not 1 <= self.top_k <= vocab_size:
            raise InputError(
                f"top_k: found {self.top_k}; accepted: 1 to {vocab_size}, the size of the vocabulary"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p: found {self.top_p}; accepted: a number above 0, at most 1")

    def restrict(self, logits: jax.Array) -> jax.Array:
        """Logits `[…, v]` divided by the temperature, up to a constant, −∞ for the tokens that are left out.

        The nucleus is that of what `top_k` leaves; tokens as likely as the last one in are in.
        """
        if self.temperature != 1:
            # Below the likeliest, so that no temperature, however low, makes an infinity of it: it stays at 0.
            below = logits - jnp.max(logits, axis=-1, keepdims=True)
            logits = jnp.where(below == 0, 0.0, below / self.temperature)
        if self.top_k is not None:
            least = jax.lax.top_k(logits, self.top_k)[0][..., -1:]
            logits = jnp.where(logits >= least, logits, -jnp.inf)
        if self.top_p is not None:
            descending = jnp.sort(logits, axis=-1, descending=True)
            probabilities = jax.nn.softmax(descending, axis=-1)
            # A token is in if those likelier than it do not reach top_p yet; the first one always is.
            inside = jnp.cumsum(probabilities, axis=-1) - probabilities < self.top_p
            least = jnp.min(jnp.where(inside, descending, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits >= least, logits, -jnp.inf)
        return logits


class State(NamedTuple):
    """How far images are drawn: `position` tokens of each, `previous` `[b]` the last of them, and the model's cache."""

    position: int
    previous: jax.Array
    cache: Cache


def start(model: Model[TokenConfig], batch_size: int) -> State:
    """The state before the first token, placed on the mesh in context."""

    # Jitted, so that the arrays are placed just as the program returns them: otherwise it would be compiled again for the
    # second call.
    @jax.jit
    def empty():
        cache = jax.tree.map(lambda x: constrain(x, "cache/"), model.init_cache(batch_size))
        return constrain(jnp.zeros(batch_size, jnp.int32), "batch/"), cache

    return State(0, *empty())


def make_sampler(
    model: Model[TokenConfig], length: int, sampling_params: SamplingParams
) -> Callable[[Params, State, jax.Array, jax.Array, jax.Array], tuple[State, jax.Array]]:
    """`sampler(params, state, prompt, given, keys) -> (state, tokens [b, length])`: the next `length` tokens.

    `prompt` is int `[b, n]`, of which positions below `given` are taken as they are; `keys` `[b]`, one per example, so that
    an image does not depend on how many are drawn beside it. Calls follow one another with the state handed on, which is
    donated; the first is `start(model, batch_size)`.

    All calls are of one program, compiled once (see `make_program`).
    """
    program = make_program(model, length, sampling_params, decoding.rooms(model, length))

    def sampler(params, state, prompt, given, keys):
        previous, cache, tokens = program(
            params, state.previous, state.cache, state.position, prompt, given, keys
        )
        return State(state.position + length, previous, cache), tokens

    return sampler


def make_program(
    model: Model[TokenConfig], length: int, sampling_params: SamplingParams, rooms: tuple[int, ...]
) -> jax.stages.Wrapped:
    """`program(params, previous, cache, position, prompt, given, keys) -> (previous, cache, tokens)`, the jitted function
    behind `make_sampler`: a loop over `length` positions from `position` on.

    The loop is there once for each length in `rooms` that the cache may be cut at, and runs on the shortest that holds the
    positions (see `crate_jax.models.decoding`).
    """
    sampling_params.check(model.config.vocab_size)

    def one(keys, logits):
        return jax.vmap(jax.random.categorical)(keys, sampling_params.restrict(logits))

    @partial(jax.jit, donate_argnums=2)
    def program(params, previous, cache, position, prompt, given, keys):
        decode = model.decoder(params)

        def step(state, _):
            previous, cache, position = state
            logits, cache = decode(previous, cache, position)
            drawn = one(jax.vmap(jax.random.fold_in, (0, None))(keys, position), logits)
            token = jnp.where(position < given, prompt[:, position], drawn).astype(jnp.int32)
            return (token, cache, position + 1), token

        def within(room, previous, cache):
            start = previous, decoding.beginning(cache, room), position
            (previous, part, _), tokens = jax.lax.scan(step, start, length=length)
            return previous, decoding.entries(part, position, length), tokens.T

        shortest = jnp.searchsorted(jnp.asarray(rooms), position + length)
        loops = [partial(within, room) for room in rooms]
        previous, new, tokens = jax.lax.switch(shortest, loops, previous, cache)
        # Placed as it came in: another placement would be another program.
        return constrain(previous, "batch/"), decoding.extend(cache, new, position), tokens

    return program
