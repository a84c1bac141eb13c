"""The entropy coder: what is encoded is decoded, in as many bytes as the frequencies say."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from crate_jax.compression import rans

STEP = jax.jit(rans.decode)


def random_sizes(rng, shape, vocab: int, skew: float) -> np.ndarray:
    """Sizes of every symbol, at least 1, that add up to TOTAL; with a large `skew` one of them has nearly all."""
    weights = (1e-6 + rng.random((*shape, vocab))) ** skew
    sizes = 1 + np.floor(weights / weights.sum(-1, keepdims=True) * (rans.TOTAL - vocab)).astype(np.int64)
    sizes[..., 0] += rans.TOTAL - sizes.sum(-1)
    return sizes.astype(np.int32)


def roundtrip(tokens: np.ndarray, sizes: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """The payloads of tokens `[b, n]` under sizes `[b, n, v]`, after they were decoded and found to end as they must."""
    starts = np.take_along_axis(np.cumsum(sizes, -1) - sizes, tokens[..., None], -1)[..., 0]
    chosen = np.take_along_axis(sizes, tokens[..., None], -1)[..., 0]
    payloads = rans.encode(starts, chosen, lengths)
    data = np.zeros((len(tokens), rans.BYTES_PER_SYMBOL * tokens.shape[1] + rans.STATE_BYTES), np.uint8)
    for row, payload in zip(data, payloads, strict=True):
        row[: len(payload)] = np.frombuffer(payload, np.uint8)
    reader = rans.open_lanes(payloads, len(payloads))
    for t in range(tokens.shape[1]):
        done = t >= lengths
        found, start, size, reader = STEP(reader, sizes[:, t], np.zeros(len(tokens), np.int32), done, data)
        np.testing.assert_array_equal(np.asarray(found)[~done], tokens[~done, t])
        np.testing.assert_array_equal(np.asarray(size)[~done], chosen[~done, t])
        np.testing.assert_array_equal(np.asarray(start)[~done], starts[~done, t])
    assert (np.asarray(reader.state) == rans.LOW).all()
    assert np.asarray(reader.place).tolist() == [len(payload) for payload in payloads]
    return payloads


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 7, 300]), st.sampled_from([0.0, 1.0, 8.0, 30.0]))
@settings(max_examples=40, deadline=None)
def test_any_symbols_come_back(seed, vocab, skew):
    rng = np.random.default_rng(seed)
    lanes, longest = 3, 20
    sizes = random_sizes(rng, (lanes, longest), vocab, skew)
    roundtrip(
        rng.integers(0, vocab, (lanes, longest), dtype=np.int32),
        sizes,
        rng.integers(0, longest + 1, lanes),
    )


def test_length_is_that_of_the_frequencies():
    rng = np.random.default_rng(0)
    sizes = random_sizes(rng, (2, 4000), 20, 6.0)
    points = rng.integers(0, rans.TOTAL, (2, 4000, 1))
    tokens = (np.cumsum(sizes, -1) <= points).sum(-1).astype(np.int32)
    payloads = roundtrip(tokens, sizes, np.array([4000, 4000]))
    chosen = np.take_along_axis(sizes, tokens[..., None], -1)[..., 0]
    ideal = np.log2(rans.TOTAL / chosen).sum(-1) / 8
    for payload, bound in zip(payloads, ideal, strict=True):
        assert bound < len(payload) < 1.0001 * bound + 4


def test_extreme_frequencies_come_back():
    """A symbol with all slots but one, and one with a single slot, which takes BYTES_PER_SYMBOL bytes."""
    sizes = np.tile(np.array([rans.TOTAL - 1, 1], np.int32), (2, 200, 1))
    tokens = np.stack([np.zeros(200, np.int32), np.ones(200, np.int32)])
    certain, rare = roundtrip(tokens, sizes, np.array([200, 200]))
    assert len(certain) <= 5
    assert len(rare) <= 200 * rans.PRECISION / 8 + 4


def test_a_known_symbol_moves_nothing():
    reader = rans.open_lanes([b"\x01\x02\x03\x04\x05"], 2)
    sizes = np.full((2, 4), rans.TOTAL // 4, np.int32)
    symbol, start, size, after = STEP(
        reader, sizes, np.array([3, 1], np.int32), np.ones(2, bool), np.zeros((2, 8), np.uint8)
    )
    assert symbol.tolist() == [3, 1]
    assert start.tolist() == [3 * rans.TOTAL // 4, rans.TOTAL // 4]
    assert size.tolist() == [rans.TOTAL // 4] * 2
    assert np.asarray(after.state).tolist() == [0x01020304, 0]
    assert np.asarray(after.place).tolist() == [4, 4]
