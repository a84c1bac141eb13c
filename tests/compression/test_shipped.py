"""The model that ships: small enough, and worth it on English that it has not seen."""

import lzma

import pytest

from crate_jax.compress import SHIPPED, open_predictor
from crate_jax.compression import codec

# Written for this test.
TEXT = b"""The river had been rising since the morning, and by the time the last of the children had come home from school
it stood level with the second step of the landing. Nobody in the village thought much of it. It rose every spring, when the
snow went from the hills, and every spring the old men came down to the bridge to lean on the wall and to say that they had
seen it higher. "In my father's day," one of them would begin, and the others would nod, for they knew what was to come: how
the mill had stood in water to the windows, and how the miller's wife had been taken out by the roof with her clock under
her arm, because she would not leave it behind.
"""


def test_it_is_small():
    assert SHIPPED.stat().st_size < 2 * 2**20


@pytest.mark.slow
def test_english_is_shorter_than_under_lzma_and_comes_back():
    predictor = open_predictor(None)
    encoded = codec.encode(TEXT, predictor).data
    assert len(encoded) < len(lzma.compress(TEXT, preset=9 | lzma.PRESET_EXTREME))
    assert codec.decode(encoded, predictor, "the text") == TEXT
