"""Layers in integers: exact against whole-number oracles, near to what they stand for, no overflow at the bounds stated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crate_jax.compression import integers
from crate_jax.compression.integers import EXP_LENGTH, FACTOR_BITS, RESIDUAL_BITS, STEPS, UNIT_BITS
from crate_jax.compression.rans import TOTAL

TABLES = integers.make_tables()
INT32 = 2**31
scaled, product, attend, frequencies = map(
    jax.jit, (integers.scaled, integers.product, integers.attend, integers.frequencies)
)
unit = jax.jit(integers.unit, static_argnames="centred")


def fits(x) -> np.ndarray:
    """The array as int64, which is all in int32's range."""
    x = np.asarray(x, np.int64)
    assert -INT32 <= x.min() and x.max() < INT32
    return x


@given(
    st.lists(st.integers(-INT32, INT32 - 1), min_size=1, max_size=8),
    st.floats(-0.499, 0.499, allow_nan=False),
)
@settings(max_examples=100, deadline=None)
def test_scaled_is_the_product_with_a_fraction(values, factor):
    scale = integers.make_scale(np.array(factor))
    m, r = int(scale.multiplier), int(scale.shift)
    assert abs(m) < 2**15 and 16 <= r <= 30
    assert abs(m / 2**r - factor) <= max(abs(factor) * 2**-15, 2**-31)
    found = np.asarray(scaled(jnp.array(values, jnp.int32), scale), np.int64)
    exact = np.array([x * m / 2**r for x in values])
    assert np.abs(found - exact).max() <= 0.5 + 2**-14 * 2.0 ** (30 - r)


def test_a_factor_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match=r"found a factor of 0\.5; accepted: below 0\.5"):
        integers.make_scale(np.array([0.1, 0.5]))


def test_product_is_exact_at_the_bounds():
    rng = np.random.default_rng(0)
    for width in (3, 1024):
        kernel = rng.choice(np.array([-127, 127], np.int8), (width, 5))
        x = np.concatenate(
            [
                -(2**FACTOR_BITS)
                * np.sign(kernel.T.astype(np.int32)),  # The largest sums that there are, cut.
                rng.integers(-(2**FACTOR_BITS), 2**FACTOR_BITS, (3, width)),
            ]
        )
        cut = np.clip(x, -(2**FACTOR_BITS), 2**FACTOR_BITS - 1)
        exact = cut.astype(np.int64) @ kernel.astype(np.int64)
        np.testing.assert_array_equal(product(jnp.array(x, jnp.int32), kernel), fits(exact))


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("width", [2, 96, 1024])
def test_unit_normalises_whatever_is_in_the_residual_stream(width, centred):
    rng = np.random.default_rng(width)
    most = 2**RESIDUAL_BITS - 1
    x = np.stack(
        [
            rng.integers(-most, most, width),
            np.where(np.arange(width) % 2, most, -most),
            np.where(np.arange(width) == 0, most, 0),
            rng.integers(-40, 40, width),
            rng.integers(-2000, 2000, width),
        ]
    )
    eps = 1000
    real = x - x.mean(-1, keepdims=True) if centred else x.astype(float)
    exact = real / np.sqrt((real**2).sum(-1, keepdims=True) + eps)
    found = fits(unit(jnp.array(x, jnp.int32), TABLES["roots"], jnp.int32(eps), centred=centred))
    # Half a unit of x for the mean, 2^-11 of the largest entry for the squares, 2^-12 for the table.
    rounding = 0.5 / np.maximum(np.abs(real).max(-1, keepdims=True), 1) + 2e-3
    assert (np.abs(found / 2**UNIT_BITS - exact) <= rounding * np.abs(exact).max(-1, keepdims=True)).all()
    assert np.abs(found).max() <= 2 ** (UNIT_BITS + 1)


def test_unit_of_nothing_is_nothing():
    zero = jnp.zeros((1, 8), jnp.int32)
    for eps in (0, 1000):
        assert not np.asarray(unit(zero, TABLES["roots"], jnp.int32(eps), centred=True)).any()


@pytest.mark.parametrize("extreme", [False, True])
def test_attend_is_softmax_attention(extreme):
    rng = np.random.default_rng(1)
    heads, n, p = 2, (integers.MAX_POSITIONS if extreme else 40), (integers.MAX_HEAD_DIM if extreme else 16)
    query = rng.integers(-(2**FACTOR_BITS), 2**FACTOR_BITS, (2, heads, p))
    keys, values = rng.integers(-127, 128, (2, 2, heads, n, p))
    if extreme:  # All scores alike, so all weights are the largest there are, and so are the values.
        query[:], keys[:], values[:] = -(2**FACTOR_BITS), 127, 127
    factor, position = np.full((heads, 1), 2e-5), n - 3
    found = attend(
        jnp.array(query, jnp.int32),
        jnp.array(np.moveaxis(keys, 0, -1), jnp.int8),
        jnp.array(np.moveaxis(values, 0, -1), jnp.int8),
        jnp.int32(position),
        integers.make_scale(factor * STEPS),
        TABLES["weights"],
    )
    seen = slice(0, position + 1)
    scores = np.einsum("bhp,bhnp->bhn", query, keys[:, :, seen]) * factor
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = np.einsum("bhn,bhnp->bhp", weights / weights.sum(-1, keepdims=True), values[:, :, seen])
    assert np.abs(fits(found) / 128 - exact).max() < (0.0 if extreme else 0.5) + 1 / 128


def test_attention_does_not_see_what_comes_later():
    rng = np.random.default_rng(2)
    query = jnp.array(rng.integers(-900, 900, (1, 1, 4)), jnp.int32)
    keys = rng.integers(-127, 128, (1, 9, 4, 1)).astype(np.int8)
    changed = keys.copy()
    changed[:, 5:] = rng.integers(-127, 128, (1, 4, 4, 1))
    scale = integers.make_scale(np.full((1, 1), 1e-3))
    first, second = (attend(query, k, k, jnp.int32(4), scale, TABLES["weights"]) for k in (keys, changed))
    np.testing.assert_array_equal(first, second)


def test_attention_in_blocks_is_attention_at_once(monkeypatch):
    """On a processor positions come in blocks, elsewhere not: codes must be the same."""
    rng = np.random.default_rng(3)
    query = jnp.array(rng.integers(-9000, 9000, (3, 2, 8)), jnp.int32)
    keys, values = jnp.array(rng.integers(-127, 128, (2, 2, 64, 8, 3)), jnp.int8)
    scale = integers.make_scale(np.full((2, 1), 1e-3))
    inputs = [(query, keys, values, jnp.int32(i), scale, TABLES["weights"]) for i in (0, 15, 16, 37, 63)]
    assert integers._block(64, 3) == 16
    blocks = [attend(*each) for each in inputs]
    monkeypatch.setattr(integers, "_block", lambda length, lanes: length)
    at_once = jax.jit(lambda *each: integers.attend(*each))
    np.testing.assert_array_equal(blocks, [at_once(*each) for each in inputs])


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 17, 256, integers.MAX_VOCAB]), st.floats(0, 20))
@settings(max_examples=30, deadline=None)
def test_frequencies_are_a_distribution_near_to_softmax(seed, vocab, spread):
    rng = np.random.default_rng(seed)
    logits = np.rint(rng.normal(size=(2, vocab)) * spread * STEPS).astype(np.int32)
    sizes = fits(frequencies(jnp.array(logits), TABLES["symbols"]))
    assert sizes.min() >= 1
    assert (sizes.sum(-1) == TOTAL).all()
    exact = np.exp(logits / STEPS - (logits / STEPS).max(-1, keepdims=True))
    exact /= exact.sum(-1, keepdims=True)
    excess = (exact * np.log2(exact.clip(1e-300) / (sizes / TOTAL))).sum(-1)
    assert excess.max() < 1e-6 + 2.2 * vocab / TOTAL


def test_frequencies_of_the_largest_logits_and_of_none():
    """Differences beyond the table, and a distribution that is flat to the last symbol."""
    wide = jnp.array([[2**30, -(2**30) + 1, 0], [7, 7, 7]], jnp.int32)
    sizes = fits(frequencies(wide, TABLES["symbols"]))
    assert (sizes.sum(-1) == TOTAL).all()
    assert sizes[0].tolist() == [TOTAL - 2, 1, 1]
    assert np.ptp(sizes[1]) <= TOTAL // 2**14


def test_tables_are_what_they_say():
    u = np.arange(EXP_LENGTH)
    np.testing.assert_allclose(TABLES["symbols"] / TOTAL, np.exp(-u / STEPS), atol=0.5 / TOTAL)
    assert TABLES["weights"].max() == 2**14 - 1
    assert TABLES["sigmoid"].dtype == TABLES["weights"].dtype == np.int16


def test_nothing_changes_where_jax_has_64_bit_numbers():
    x = np.random.default_rng(0).integers(-(2**18), 2**18, (3, 32)).astype(np.int32)

    def both():
        normed = integers.unit(jnp.array(x), jnp.array(TABLES["roots"]), jnp.int32(5), centred=True)
        return normed, integers.frequencies(normed >> 18, jnp.array(TABLES["symbols"]))

    narrow = both()
    with jax.enable_x64(True):
        wide = both()
    for one, other in zip(narrow, wide, strict=True):
        assert one.dtype == other.dtype == jnp.int32
        np.testing.assert_array_equal(one, other)
