"""Decoding, conversion and augmentation of one image."""

import io

import cv2
import numpy as np
import pytest

from crate_jax import InputError
from crate_jax.data import transforms


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def saved_by_pillow(mode: str, colour, kind: str = "JPEG") -> bytes:
    pillow = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    pillow.new(mode, (16, 16), colour).save(file, kind)
    return file.getvalue()


def test_decode_returns_rgb():
    blue_green_red = np.zeros((4, 6, 3), np.uint8)
    blue_green_red[..., 2] = 200  # OpenCV writes blue, green, red
    image = transforms.decode(encoded(blue_green_red), channels=3, where="x.png")
    assert image.shape == (4, 6, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image[0, 0], [200, 0, 0])


def test_decode_keeps_grey_grey_and_converts_on_demand():
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    for channels in (None, 1):
        image = transforms.decode(encoded(grey), channels=channels, where="x.png")
        np.testing.assert_array_equal(image, grey[..., None])
    rgb = transforms.decode(encoded(grey), channels=3, where="x.png")
    np.testing.assert_array_equal(rgb, np.repeat(grey[..., None], 3, axis=-1))


@pytest.mark.parametrize(("channels", "expected"), [(3, [255, 0, 0]), (1, [76])])
def test_decode_cmyk_jpeg(channels, expected):
    red = saved_by_pillow("CMYK", (0, 255, 255, 0))
    image = transforms.decode(red, channels=channels, where="x.jpg")
    np.testing.assert_allclose(image[8, 8], expected, atol=3)


@pytest.mark.parametrize("channels", [1, 3, None])
def test_decode_scales_16_bits_to_8(channels):
    image = transforms.decode(encoded(np.full((4, 4), 0x80FF, np.uint16)), channels=channels, where="x.png")
    assert image.dtype == np.uint8
    assert abs(int(image[0, 0, 0]) - 0x80) <= 1


@pytest.mark.parametrize(
    ("mode", "colour"), [("RGBA", (10, 10, 10, 128)), ("LA", (10, 128)), ("P", 0), ("1", 0)]
)
@pytest.mark.parametrize("channels", [1, 3, None])
def test_decode_drops_transparency_and_palettes(mode, colour, channels):
    image = transforms.decode(saved_by_pillow(mode, colour, "PNG"), channels=channels, where="x.png")
    assert image.shape[:2] == (16, 16) and image.shape[2] in ((1, 3) if channels is None else (channels,))


@pytest.mark.parametrize("data", [b"", b"no image", encoded(np.zeros((8, 8), np.uint8))[:40]])
def test_decode_names_an_unreadable_file(data):
    with pytest.raises(
        InputError, match=r"^cats/1\.png: unreadable image \(\d+ bytes\); accepted: JPEG, PNG"
    ) as error:
        transforms.decode(data, channels=3, where="cats/1.png")
    assert "\n" not in str(error.value)


def test_fit_leaves_a_fitting_image_alone():
    image = np.zeros((8, 8, 1), np.uint8)
    assert transforms.fit(image, size=8, channels=1) is image


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (8, 8), (40, 31), (3, 3)])
@pytest.mark.parametrize("found", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_fit_gives_the_wanted_shape(shape, found, channels):
    image = np.full((*shape, found), 77, np.uint8)
    fitted = transforms.fit(image, size=8, channels=channels)
    assert fitted.shape == (8, 8, channels) and fitted.dtype == np.uint8
    assert abs(fitted.astype(int) - 77).max() <= 1


def test_fit_takes_the_centre_and_averages_when_it_reduces():
    image = np.zeros((4, 8, 1), np.uint8)
    image[:, 2:6, 0] = [[100, 0, 100, 0]] * 4
    np.testing.assert_array_equal(transforms.fit(image, size=2, channels=1), np.full((2, 2, 1), 50))


def test_random_shift_by_less_than_a_pixel_keeps_the_mean_and_stays_in_range():
    image = np.zeros((8, 8, 1), np.uint8)
    image[3:5, 3:5] = 16
    for seed in range(20):
        shifted = transforms.random_shift(image, np.random.default_rng(seed), 0.5)
        assert shifted.shape == image.shape and shifted.dtype == np.uint8 and shifted.max() <= 16
        assert abs(shifted.sum(dtype=int) - image.sum(dtype=int)) <= 9  # rounding of nine pixels at most
        rows, columns = np.nonzero(shifted[..., 0])
        assert rows.min() >= 2 and rows.max() <= 5 and columns.min() >= 2 and columns.max() <= 5


def test_random_crop_moves_by_whole_pixels_within_the_padding():
    image = np.zeros((8, 8, 3), np.uint8)
    image[4, 4] = [1, 2, 3]
    places = set()
    for seed in range(200):
        cropped = transforms.random_crop(image, np.random.default_rng(seed), 1)
        assert cropped.shape == image.shape
        (row,), (column,) = np.nonzero(cropped[..., 2])
        np.testing.assert_array_equal(cropped[row, column], [1, 2, 3])
        places.add((int(row), int(column)))
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}


def test_random_flip_mirrors_half():
    image = np.arange(6, dtype=np.uint8).reshape(1, 6, 1)
    rng = np.random.default_rng(0)
    flipped = [transforms.random_flip(image, rng)[0, 0, 0] == 5 for _ in range(400)]
    assert 150 < sum(flipped) < 250


def test_augment_depends_on_the_generator_alone():
    image = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    augment = transforms.Augment(shift=1.5, flip=True, crop_padding=2)
    first, again, other = (augment(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and first.shape == image.shape
    assert transforms.Augment()(image, np.random.default_rng(0)) is image


def test_augment_refuses_negative_amounts():
    with pytest.raises(InputError, match="crop_padding is -1; accepted: 0 or more"):
        transforms.Augment(crop_padding=-1)
