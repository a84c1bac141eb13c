"""Code lengths against sums by hand."""

import math

import numpy as np
import pytest

from crate_jax.compression.lengths import CodeLength, Prequential, TwoPart, quantise


def test_units():
    length = CodeLength(nats=80 * math.log(2), tokens=20, raw_bytes=40)
    assert length.as_dict() == pytest.approx(
        {
            "tokens": 20,
            "nats": 80 * math.log(2),
            "bits": 80,
            "bytes": 10,
            "nats_per_token": 4 * math.log(2),
            "bits_per_dim": 4,
            "bits_per_byte": 2,
            "ratio": 0.25,
        }
    )


def test_a_prequential_length_and_its_parts():
    code = Prequential(tokens=[10, 20, 10], nats_per_token=[3.0, 2.0, 1.5], end=1.25)
    assert code.nats == 30 + 40 + 15
    assert code.entropy == 50
    assert code.learned == 10 * 1.75 + 20 * 0.75 + 10 * 0.25 == code.nats - code.entropy


def test_adaptive_coin_is_coded_as_laplace_says():
    """A model that predicts heads with (h + 1)/(n + 2) needs ln((n + 1)·C(n, h)) nats for n tosses."""
    tosses = np.random.default_rng(0).integers(0, 2, 50)
    losses = []
    for n, toss in enumerate(tosses):
        heads = tosses[:n].sum()
        losses.append(-math.log((heads + 1 if toss else n - heads + 1) / (n + 2)))
    code = Prequential([1] * 50, losses, end=0.0)
    assert code.nats == pytest.approx(math.log(51 * math.comb(50, int(tosses.sum()))))


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_parameters_in_a_code_by_hand(bits):
    rows = np.array([[1.0, -0.45, 0.3], [0.0, 0.0, 0.0]], np.float32)
    coded, nats = quantise({"a": {"w": rows}, "b": np.array([-2.0, 0.7], np.float32)}, bits)
    assert nats == pytest.approx((bits * 8 + 32 * 3) * math.log(2))
    levels = 2 ** (bits - 1) - 1
    by_hand = [[round(value * levels) / levels for value in row] for row in rows.astype(float).tolist()]
    np.testing.assert_allclose(coded["a"]["w"], by_hand, rtol=1e-6)
    np.testing.assert_allclose(
        coded["b"], [-2.0, round(np.float32(0.7) / 2 * levels) * 2 / levels], rtol=1e-6
    )


def test_thirty_two_bits_are_the_parameters_themselves():
    params = {"w": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32), "s": np.float32(0.1)}
    coded, nats = quantise(params, 32)
    np.testing.assert_array_equal(coded["w"], params["w"])
    assert coded["s"] == params["s"] and nats == pytest.approx(16 * 32 * math.log(2))


def test_two_parts_are_added():
    assert TwoPart(bits=8, parameters=3.0, data=4.5).nats == 7.5
