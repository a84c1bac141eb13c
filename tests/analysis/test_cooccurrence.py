"""Pairs of pixels and of words: what is counted, and what is refused."""

import numpy as np
import pytest

from crate_jax import InputError
from crate_jax.analysis.cooccurrence import colour_counts, pixel_pairs, word_counts


def places(height, width):
    """An image whose pixels say where they are."""
    rows, columns = np.indices((height, width))
    return np.stack([rows, columns, np.zeros_like(rows)], -1).astype(np.uint8)


@pytest.mark.parametrize("radius", [1, 1.5, 4])
def test_pairs_are_near_and_never_the_same_pixel(radius):
    pairs = pixel_pairs([places(9, 13)], radius=radius, count=4000, seed=0).astype(int)
    assert pairs.shape == (4000, 2, 3)
    lengths = ((pairs[:, 0] - pairs[:, 1]) ** 2).sum(-1)
    assert lengths.min() == 1
    assert lengths.max() == max(
        a * a + b * b for a in range(5) for b in range(5) if a * a + b * b <= radius**2
    )


def test_every_pair_is_as_likely_as_any_other():
    """A 1×3 image has the pairs (0,1), (1,0), (1,2), (2,1) at distance 1."""
    pairs = pixel_pairs([places(1, 3)], radius=1, count=40_000, seed=0)[:, :, 1].astype(int)
    _, counts = np.unique(pairs, axis=0, return_counts=True)
    assert counts.sum() == 40_000
    np.testing.assert_allclose(counts / 40_000, 0.25, atol=0.01)


def test_images_count_by_their_pixels():
    dark, light = np.zeros((10, 10, 3), np.uint8), np.full((10, 30, 3), 255, np.uint8)
    pairs = pixel_pairs([dark, light], radius=2, count=20_000, seed=0)
    assert np.isclose((pairs == 255).mean(), 0.75, atol=0.01)
    assert (pairs[:, 0] == pairs[:, 1]).all()


def test_colours_are_cells_and_their_mean():
    pairs = np.zeros((60, 2, 3), np.uint8)
    pairs[:, :, 0] = np.repeat(
        [[10, 20], [60, 70], [120, 130], [180, 190], [240, 250], [10, 250]], 10, axis=0
    )
    counts = colour_counts(pairs, grid=8, least=5)
    assert len(counts.names) == 7  # Steps of 32 cut 60 from 70 and 120 from 130, but not 10 from 20.
    assert counts.names[0] == "#0d0000"
    np.testing.assert_allclose(counts.rgb[0], [(10 * 20 + 20 * 10) / 30 / 255, 0, 0])
    np.testing.assert_array_equal(counts.counts, counts.counts.T)
    assert counts.counts.sum() == 2 * 60
    assert counts.counts[0, 0] == 20
    assert counts.counts[0, -1] == 10


def test_rare_colours_are_left_out_with_their_pairs():
    shades = np.array([5, 40, 75, 110, 145, 180], np.uint8)
    pairs = np.repeat(shades, 10)[:, None, None] * np.ones((1, 2, 3), np.uint8)
    pairs = np.concatenate([pairs, np.array([[[5] * 3, [250] * 3]], np.uint8)])
    counts = colour_counts(pairs, grid=8, least=5)
    assert len(counts.names) == 6
    assert counts.counts.sum() == 2 * 60


def test_an_image_of_one_colour_is_refused():
    pairs = pixel_pairs([np.zeros((5, 5, 3), np.uint8)], radius=2, count=100, seed=0)
    with pytest.raises(InputError, match=r"1 colours on a grid of 4 steps.*accepted: five or more"):
        colour_counts(pairs, grid=4, least=1)


COLORS = {
    word: np.array([i / 10, 0, 0]) for i, word in enumerate(("red", "green", "blue", "pink", "brown", "grey"))
}


def test_words_within_the_window():
    text = "Red green. Blue x x x pink! brown, GRAY"
    counts = word_counts(text, COLORS, window=2)
    assert counts.names == ("red", "green", "blue", "pink", "brown", "grey")
    expected = np.zeros((6, 6))
    for pair in ((0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5)):
        expected[pair] = expected[pair[::-1]] = 1
    np.testing.assert_array_equal(counts.counts, expected)


def test_a_text_without_colours_is_refused():
    with pytest.raises(
        InputError, match=r"2 colour words occur within 5 words.*accepted: a text with five or more"
    ):
        word_counts("red green and one tree", COLORS, window=5)
