"""The coders that a model has to beat."""

import lzma
import zlib

import cv2
import numpy as np
import pytest

from crate_jax.compression import baselines


def test_order0_entropy_by_hand():
    # Frequencies 1/2, 1/4, 1/8, 1/8: 1.75 bits a token.
    assert baselines.order0_bits(np.array([3, 3, 3, 3, 1, 1, 0, 7])) == pytest.approx(8 * 1.75)
    assert baselines.order0_bits(np.full((4, 5), 2)) == 0


def test_streams_hold_the_tokens():
    tokens = np.random.default_rng(0).integers(0, 512, (20, 64))
    raw = tokens.astype("<u2").tobytes()
    assert baselines.zlib_bits(tokens) == 8 * len(zlib.compress(raw, 9))
    assert baselines.lzma_bits(tokens) < 8 * len(lzma.compress(raw, preset=9))
    assert baselines.lzma_bits(tokens) > 9 * tokens.size  # Noise: nothing to gain.
    small = tokens % 17
    assert baselines.zlib_bits(small) == 8 * len(zlib.compress(small.astype(np.uint8).tobytes(), 9))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_lengths(channels):
    images = np.random.default_rng(0).integers(0, 17, (7, 8, 8, channels)).astype(np.uint8)
    default = sum(8 * cv2.imencode(".png", image)[1].size for image in images)
    assert 0 < baselines.png_bits(images) <= default
    # A sheet pays for one header in place of seven.
    assert baselines.png_sheet_bits(images) < baselines.png_bits(images)


def test_coders_of_files_count_bytes_of_files():
    data = b"abcabcabd" * 300
    lengths = {name: coder(data) for name, coder in baselines.file_coders().items()}
    assert lengths["xz -9e"] == len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    assert all(10 < length < 200 for length in lengths.values())


@pytest.mark.parametrize("channels", [1, 3])
def test_coders_of_images_are_lossless_and_count_every_file(channels):
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, channels), dtype=np.uint8)
    for coder in baselines.image_coders().values():
        assert coder(images) > images.size * 0.9  # Noise does not get shorter without loss.
