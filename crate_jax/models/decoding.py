"""Decoding a causal token model one position after the other, against a cache that is read as far as it is full.

    cache = model.init_cache(batch_size)
    decode = model.decoder(params)              # inside the jitted function, outside of its loop
    part = beginning(cache, room)               # with room for the next positions
    logits, part = decode(previous, part, position)
    cache = extend(cache, entries(part, first, count), first)

A cache has a static shape, and every token reads all of it, full or not. So a loop over some positions runs on the beginning
of the cache, cut at one of a few lengths (`rooms`), and what it added is put back. The last bits of the logits depend on
that length. Where bits must agree (the two sides of an entropy coder), have the same lengths at the same positions.
"""

import jax

from crate_jax.models.gpt import TokenConfig
from crate_jax.models.model import Cache, Model
from crate_jax.models.partition import constrain

# The lengths that a cache is cut at are so many, and no closer than SHORTEST_STAGE positions. More of them read less of what
# is still empty (of n positions (1 + 1/stages)/2 on average) and take longer to compile.
STAGES = 8
SHORTEST_STAGE = 64


def rooms(model: Model[TokenConfig], positions: int) -> tuple[int, ...]:
    """The lengths that a cache is cut at, in positions, from the first that holds `positions` to the whole."""
    whole = model.config.num_positions
    stage = max(-(-whole // STAGES), SHORTEST_STAGE)
    lengths = [min(length, whole) for length in range(stage, whole + stage, stage)]
    return tuple(length for length in lengths if length >= positions)


def beginning(cache: Cache, room: int) -> Cache:
    """The first `room` positions of a cache, arrays `[b, heads, n, p]`."""
    return jax.tree.map(lambda x: constrain(x[:, :, :room], "cache/"), cache)


def entries(cache: Cache, first: jax.Array, count: int) -> Cache:
    """`count` positions of a cache, from `first` on."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, count, axis=2), cache)


def extend(cache: Cache, new: Cache, first: jax.Array) -> Cache:
    """The cache with `new` entries from position `first` on."""

    def put(x, part):
        return constrain(jax.lax.dynamic_update_slice_in_dim(x, part, first, axis=2), "cache/")

    return jax.tree.map(put, cache, new)
