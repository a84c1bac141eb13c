"""Drawing images from a next-token model: a KV cache of static shape and one compiled scan over positions."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from crate_jax import InputError
from crate_jax.models.model import Model, Params
from crate_jax.models.partition import constrain

# The cache grows to its full length in so many steps, none shorter than SHORTEST_STAGE positions. More of them read less of
# what is still empty (of n positions (1 + 1/stages)/2 on average) and compile more often.
STAGES = 8
SHORTEST_STAGE = 64


class Draw(NamedTuple):
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
        """Logits `[…, v]` divided by the temperature, −∞ for the tokens that are left out.

        The nucleus is that of what `top_k` leaves; tokens as likely as the last one in are in.
        """
        logits = logits / self.temperature
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
    cache: Any


def start(model: Model, batch_size: int) -> State:
    """The state before the first token."""
    return State(0, jnp.zeros(batch_size, jnp.int32), model.init_cache(batch_size, cache_length(model, 1)))


def make_sampler(
    model: Model, length: int, draw: Draw
) -> Callable[[Params, State, jax.Array, jax.Array, jax.Array], tuple[State, jax.Array]]:
    """`sampler(params, state, prompt, given, keys) -> (state, tokens [b, length])`: the next `length` tokens.

    `prompt` is int `[b, n]`, of which positions below `given` are taken as they are; `keys` `[b]`, one an example, so that
    an image does not depend on how many are drawn beside it. Calls follow one another with the state handed on, which is
    donated; the first is `start(model, batch_size)`.

    A call is one compiled scan over positions. Its cache has a static shape, of which every token reads all; so that the
    first tokens need not read room for the last, the cache grows between calls, and the scan is compiled once for each of
    its lengths (see STAGES).
    """
    draw.check(model.config.vocab_size)

    def one(keys, logits):
        return jax.vmap(jax.random.categorical)(keys, draw.restrict(logits))

    @partial(jax.jit, donate_argnums=2)
    def scan(params, previous, cache, position, prompt, given, keys):
        decode = model.decoder(params)

        def step(state, _):
            previous, cache, position = state
            logits, cache = decode(previous, cache, position)
            drawn = one(jax.vmap(jax.random.fold_in, (0, None))(keys, position), logits)
            token = jnp.where(position < given, prompt[:, position], drawn).astype(jnp.int32)
            return (token, cache, position + 1), token

        (previous, cache, _), tokens = jax.lax.scan(step, (previous, cache, position), length=length)
        return previous, cache, tokens.T

    def sampler(params, state, prompt, given, keys):
        end = state.position + length
        cache, length_needed = state.cache, cache_length(model, end)
        if jax.tree.leaves(cache)[0].shape[2] < length_needed:
            cache = grow(cache, length_needed)
        previous, cache, tokens = scan(params, state.previous, cache, state.position, prompt, given, keys)
        return State(end, previous, cache), tokens

    return sampler


def cache_length(model: Model, positions: int) -> int:
    """The length of the sampler's cache that has room for so many positions: the next whole stage."""
    stage = max(-(-model.config.num_positions // STAGES), SHORTEST_STAGE)
    return min(-(-positions // stage) * stage, model.config.num_positions)


@partial(jax.jit, static_argnums=1)
def grow(cache: Any, length: int) -> Any:
    """The model's cache, arrays `[b, k, n, p]`, with room for `length` positions."""

    def longer(x):
        return constrain(jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0))), "cache/")

    return jax.tree.map(longer, cache)
