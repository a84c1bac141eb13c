"""Decoding, conversion and augmentation of one image."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image as pillow

from crate_jax import InputError
from crate_jax.data import augmentation, transforms


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def saved_by_pillow(mode: str, colour, kind: str = "JPEG") -> bytes:
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
    augment = augmentation.Augment(shift=1.5, flip=True, crop_padding=2)
    first, again, other = (augment(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and first.shape == image.shape
    assert augmentation.Augment()(image, np.random.default_rng(0)) is image


def test_augment_refuses_negative_amounts():
    with pytest.raises(InputError, match="crop_padding is -1; accepted: 0 or more"):
        augmentation.Augment(crop_padding=-1)


def photograph(height: int = 300, width: int = 400) -> np.ndarray:
    """A smooth image: red grows downwards, green to the right."""
    rows, columns = np.mgrid[:height, :width]
    blue = np.full((height, width), 60)
    return np.stack([rows * 255 // height, columns * 255 // width, blue], axis=-1).astype(np.uint8)


def jpeg(image: np.ndarray) -> transforms.Encoded:
    data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
    return transforms.Encoded(data, "x.jpg")


def test_resize_then_crop_is_that_of_torchvision():
    """Resize(256) and CenterCrop(224) of Pillow images, as the papers evaluate; torchvision calls the same two functions."""
    for height, width in ((375, 500), (501, 334), (256, 256), (230, 301)):
        image = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
        short = min(height, width)
        size = (int(256 * width / short), int(256 * height / short))
        resized = np.asarray(pillow.fromarray(image).resize(size, pillow.Resampling.BILINEAR))
        top, left = (round((side - 224) / 2) for side in resized.shape[:2])
        expected = resized[top : top + 224, left : left + 224]
        np.testing.assert_array_equal(transforms.fit(image, size=224, channels=3, resize=256), expected)
    grey = transforms.fit(image, size=8, channels=1, resize=9)
    assert grey.shape == (8, 8, 1)
    with pytest.raises(InputError, match=r"data\.eval_resize: found 200; accepted: 224"):
        transforms.fit(image, size=224, channels=3, resize=200)


def test_the_header_gives_the_size():
    assert transforms._jpeg_shape(jpeg(photograph()).data) == (300, 400)
    assert transforms._jpeg_shape(encoded(photograph())) is None
    for damaged in (b"", b"\xff\xd8", jpeg(photograph()).data[:40]):
        assert transforms._jpeg_shape(damaged) is None
    turned = io.BytesIO()
    picture = pillow.fromarray(photograph())
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by 90°
    picture.save(turned, "JPEG", exif=exif)
    assert transforms._jpeg_shape(turned.getvalue()) is None
    file = transforms.Encoded(turned.getvalue(), "x.jpg")
    crop = transforms.inception_crop(file, np.random.default_rng(0), size=32, channels=3, scale=(1, 1))
    assert crop.shape == (32, 32, 3)


def test_inception_crop_boxes_have_the_areas_and_shapes_asked_for():
    rng, boxes = np.random.default_rng(0), []
    for _ in range(2000):
        top, left, height, width = transforms._crop_box(rng, 300, 400, (0.08, 1.0), (3 / 4, 4 / 3))
        assert 0 <= top <= 300 - height and 0 <= left <= 400 - width
        boxes.append((height * width / 120000, width / height, top / max(1, 300 - height)))
    area, aspect, place = np.array(boxes).T
    assert 0.079 < area.min() < 0.1 and 0.9 < area.max() <= 1
    assert 0.74 < aspect.min() and aspect.max() < 1.35
    assert abs(place.mean() - 0.5) < 0.03
    # No box fits: the largest centre part.
    assert transforms._crop_box(rng, 10, 400, (1.0, 1.0), (3 / 4, 4 / 3)) == (0, 193, 10, 13)


@pytest.mark.parametrize("size", [16, 60, 140, 280])
def test_inception_crop_of_a_file_is_that_of_its_pixels(size):
    """The reduced JPEG is cut at fractions of its pixels, so nothing moves."""
    image = photograph()
    for seed in range(20):
        draw = lambda source: transforms.inception_crop(  # noqa: E731
            source,
            np.random.default_rng(seed),  # noqa: B023
            size=size,
            channels=3,
        )
        from_pixels, from_file = draw(image), draw(jpeg(image))
        assert from_file.shape == (size, size, 3) and from_file.dtype == np.uint8
        assert abs(from_pixels.astype(int) - from_file).max() <= 6
    assert transforms.inception_crop(image, np.random.default_rng(0), size=9, channels=1).shape == (9, 9, 1)


def test_a_reduced_jpeg_is_as_sharp_as_the_whole():
    """Where eight source pixels and more become one, in a picture of noise at every scale."""
    rng = np.random.default_rng(0)
    noise = sum(
        cv2.resize(rng.normal(size=(side, side, 3)), (512, 512), interpolation=cv2.INTER_CUBIC)
        for side in (4, 8, 16, 32, 64, 128, 256, 512)
    )
    image = np.clip(128 + 30 * noise, 0, 255).astype(np.uint8)
    file = jpeg(image)
    pixels = transforms.decode(*file, channels=3)
    energy, differences = [], []
    for seed in range(20):
        whole, reduced = (
            transforms.inception_crop(source, np.random.default_rng(seed), size=32, channels=3).astype(int)
            for source in (pixels, file)
        )
        energy.append(np.sum(np.diff(reduced, axis=0) ** 2) / np.sum(np.diff(whole, axis=0) ** 2))
        differences.append(abs(reduced - whole).mean())
    assert 0.9 < np.mean(energy) < 1.05 and np.mean(differences) < 1.5


@pytest.mark.parametrize("size", [24, 64, 300])
@pytest.mark.parametrize("channels", [1, 3])
def test_inception_crops_are_pillows(size, channels):
    """Enlarged or reduced, from pixels: to one level."""
    image = np.random.default_rng(0).integers(256, size=(90, 120, channels), dtype=np.uint8)
    picture = pillow.fromarray(image.squeeze(-1) if channels == 1 else image)
    for seed in range(20):
        found = transforms.inception_crop(image, np.random.default_rng(seed), size=size, channels=channels)
        rng = np.random.default_rng(seed)
        top, left, height, width = transforms._crop_box(rng, 90, 120, (0.08, 1.0), (3 / 4, 4 / 3))
        part = picture.crop((left, top, left + width, top + height))
        expected = np.asarray(part.resize((size, size), pillow.Resampling.BILINEAR)).reshape(found.shape)
        assert abs(found.astype(int) - expected).max() <= 1


def test_stretching_shows_all_of_an_image():
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :10] = 255
    stretched = transforms.fit(image, size=8, channels=3, stretch=True)
    assert stretched.shape == (8, 8, 3) and stretched[:, 0].min() == 255 and stretched[:, 4:].max() == 0
    with pytest.raises(
        InputError, match=r"data\.eval_resize: found 9 beside data\.stretch; accepted: one of them"
    ):
        transforms.fit(image, size=8, channels=3, resize=9, stretch=True)


POLICIES = [
    {"randaugment": (2, 14)},
    {"randaugment_timm": (2, 9)},
    {"trivial_augment": True},
    {"three_augment": True},
    {"color_jitter": 0.4},
]


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_depend_on_the_generator_alone(policy):
    image = photograph(40, 40)
    augment = augmentation.Augment(size=32, channels=3, crop_scale=(0.3, 1.0), **policy)
    results = []
    for seed in range(60):
        first, again = (augment(image, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        assert first.shape == (32, 32, 3) and first.dtype == np.uint8
        results.append(first.tobytes())
    assert len(set(results)) > 50
    with pytest.raises(InputError, match=f"{next(iter(policy))} needs colour images; found 1 channel"):
        augmentation.Augment(channels=1, **policy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_scale": (0.5,)}, "crop_scale is .*; accepted: two shares"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale is .*; accepted: two shares"),
        ({"crop_scale": (0.8, 0.2)}, "crop_scale is .*; accepted: two shares"),
        ({"randaugment": (2, 31)}, r"randaugment is \(2, 31\); accepted: operations, magnitude \(0 to 30\)"),
        ({"randaugment": (2,)}, "randaugment is"),
        ({"randaugment_timm": (2, 11)}, r"randaugment_timm is \(2, 11\); accepted: .*\(0 to 10\)"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'; accepted: bilinear, bicubic"),
        ({"color_jitter": 1.5}, "color_jitter is 1.5; accepted: 0 to 1"),
    ],
)
def test_augment_refuses_what_makes_no_sense(change, message):
    with pytest.raises(InputError, match=message):
        augmentation.Augment(**change)
