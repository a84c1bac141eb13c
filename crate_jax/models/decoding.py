"""Decoding a causal token model one position after the other, against a cache that grows.

    cache = init_cache(model, batch_size)
    decode = model.decoder(params)              # inside the jitted function, outside of its loop
    cache = make_room(model, cache, positions)  # before the next positions are decoded
    logits, cache = decode(previous, cache, position)

A cache has a static shape, and every token reads all of it, full or not. So it starts short and grows in stages: the first
tokens do not read room kept for the last, and a function of it is compiled once per stage. The last bits of the logits
depend on the cache's length. Where bits must agree (the two sides of an entropy coder), have the same lengths at the same
positions: the same calls of `make_room` give them.
"""

from functools import partial

import jax
import jax.numpy as jnp

from crate_jax.models.gpt import TokenConfig
from crate_jax.models.model import Cache, Model
from crate_jax.models.partition import constrain

# The cache grows to its full length in so many steps, none shorter than SHORTEST_STAGE positions. More of them read less of
# what is still empty (of n positions (1 + 1/stages)/2 on average) and compile more often.
STAGES = 8
SHORTEST_STAGE = 64


def init_cache(model: Model[TokenConfig], batch_size: int) -> Cache:
    """An empty cache of the first stage's length.

    Raises:
      InputError: a model that does not predict tokens one after the other.
    """
    return model.init_cache(batch_size, cache_length(model, 1))


def cache_length(model: Model[TokenConfig], positions: int) -> int:
    """The length of a cache that has room for so many positions: the next whole stage, in positions."""
    stage = max(-(-model.config.num_positions // STAGES), SHORTEST_STAGE)
    return min(-(-positions // stage) * stage, model.config.num_positions)


def make_room(model: Model[TokenConfig], cache: Cache, positions: int) -> Cache:
    """The cache, grown to the next whole stage if it does not hold so many positions yet."""
    length = cache_length(model, positions)
    return grow(cache, length) if jax.tree.leaves(cache)[0].shape[2] < length else cache


@partial(jax.jit, static_argnums=1)
def grow(cache: Cache, length: int) -> Cache:
    """The cache, arrays `[b, heads, n, p]`, with room for `length` ≥ n positions; what is new is zero."""

    def longer(x):
        return constrain(jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0))), "cache/")

    return jax.tree.map(longer, cache)
