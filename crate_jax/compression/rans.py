"""Bits from integer frequencies: an entropy coder (rANS) over many lanes at once, exact on every machine.

Each symbol has a share `size` of TOTAL slots, from `start` on; the sizes are at least 1 and add up to TOTAL. A
lane's state x is a 32-bit number in [LOW, 2³²). Coding a symbol replaces it by
    x ← ⌊x / size⌋ · TOTAL + start + x mod size,
bytes being moved out first so that it stays in range; decoding undoes that in the opposite order. A lane costs the sum of
log₂(TOTAL / size) bits, about 1e-5 of it for rounding, and at most 4 bytes for the state.

Duda 2013 (arXiv 1311.2540). Own code, because the coders of the library `constriction` take probabilities as floats and
quantise them themselves; here the frequencies come as integers, and the decoder is a step of the compiled loop that the
model runs in, without 64-bit numbers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PRECISION = 20
TOTAL = 1 << PRECISION
LOW = 1 << 24
# A state below size · 2^_SPARE stays below 2³² when a symbol of that size is coded.
_SPARE = 32 - PRECISION
STATE_BYTES = 4
# Bytes that one symbol can take: a size of 1 leaves 4 of the 24 bits that a state has at least.
BYTES_PER_SYMBOL = 3


def encode(starts: np.ndarray, sizes: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """What `decode` reads: the bytes of each lane.

    Args:
      starts, sizes: int `[b, n]`, of each symbol that is coded.
      lengths: int `[b]`: only the first so many symbols of a lane count.
    """
    lanes, longest = starts.shape
    state = np.full(lanes, LOW, np.uint32)
    written = np.zeros((lanes, BYTES_PER_SYMBOL * longest + STATE_BYTES), np.uint8)
    # Filled from the end, because what is coded last is decoded first.
    place = np.full(lanes, written.shape[1])
    for t in reversed(range(longest)):
        live = t < lengths
        size = np.where(live, sizes[:, t], TOTAL).astype(np.uint32)
        full = np.flatnonzero((state >> _SPARE >= size) & live)
        while full.size:
            place[full] -= 1
            written[full, place[full]] = state[full] & 255
            state[full] >>= 8
            full = full[state[full] >> _SPARE >= size[full]]
        quotient = state // size
        after = (quotient << PRECISION) + starts[:, t].astype(np.uint32) + (state - quotient * size)
        state = np.where(live, after, state)
    return [
        int(x).to_bytes(STATE_BYTES, "big") + row[begin:].tobytes()
        for x, row, begin in zip(state, written, place, strict=True)
    ]


class Reader(NamedTuple):
    """Where the decoder of each lane stands: its state uint32 `[b]`, and its next byte int32 `[b]` in the bytes at hand."""

    state: jax.Array
    place: jax.Array


def open_lanes(payloads: list[bytes], lanes: int) -> Reader:
    """The decoders at the start of the payloads; of lanes without one, or with one too short to be any, at zero."""
    heads = [payload[:STATE_BYTES].ljust(STATE_BYTES, b"\0") for payload in payloads]
    states = [int.from_bytes(head, "big") for head in heads] + [0] * (lanes - len(payloads))
    return Reader(np.array(states, np.uint32), np.full(lanes, STATE_BYTES, np.int32))


def decode(
    reader: Reader, sizes: jax.Array, given: jax.Array, known: jax.Array, data: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, Reader]:
    """The next symbol of each lane: read from its bytes, or the one that is given.

    Args:
      reader: where the lanes stand.
      sizes: int32 `[b, v]`, of every symbol; each ≥ 1, the sum exactly TOTAL.
      given: int32 `[b]`. known: bool `[b]`: take the given symbol and leave the reader as it is.
      data: uint8 `[b, m]`, with what `reader.place` points at. Past its end stands 0.
    Returns:
      `(symbol, start, size, reader)`, the first three int32 `[b]`.
    """
    ends = jnp.cumsum(sizes, axis=-1, dtype=jnp.int32)
    slot = (reader.state & jnp.uint32(TOTAL - 1)).astype(jnp.int32)
    read = jnp.sum(ends <= slot[:, None], axis=-1, dtype=jnp.int32)
    symbol = jnp.where(known, given, read)
    size = jnp.take_along_axis(sizes, symbol[:, None], axis=-1)[:, 0]
    start = jnp.take_along_axis(ends, symbol[:, None], axis=-1)[:, 0] - size
    state = size.astype(jnp.uint32) * (reader.state >> PRECISION) + (slot - start).astype(jnp.uint32)
    place = reader.place
    for _ in range(BYTES_PER_SYMBOL):
        low = (state < LOW) & ~known
        following = jnp.take_along_axis(data, place[:, None], axis=-1, mode="fill", fill_value=0)[:, 0]
        state = jnp.where(low, state << 8 | following, state)
        place = place + low
    return symbol, start, size, Reader(jnp.where(known, reader.state, state), place)
