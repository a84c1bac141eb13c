"""Functions on one image: decoding, conversion to the wanted shape, and random augmentation.

An image is a uint8 array [height, width, channels] with channels 1 (grey) or 3 (RGB), or a file's content not yet
decoded, so that a crop decodes no more than it needs. Whatever is random is given its ``np.random.Generator``, so the
caller decides what the result depends on.
"""

import io
import math
import re
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image as pillow

from crate_jax import InputError

# The pipeline's own threads already occupy the cores; OpenCV's would only compete with them.
cv2.setNumThreads(0)


# A larger image is a mistake or an attack: one of 20,000 × 20,000 pixels takes 1.2 GB, and again as much to convert.
MOST_PIXELS = 100_000_000


class Encoded(NamedTuple):
    """The content of an image file, its name for error messages, and how many pixels it may have."""

    data: bytes
    where: str
    most_pixels: int = MOST_PIXELS


Image = np.ndarray | Encoded

# OpenCV's flags by channels. A JPEG is reduced while it is decoded, in half the time.
_FLAGS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB, None: cv2.IMREAD_ANYCOLOR}
_REDUCTIONS = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def decode(
    data: bytes,
    where: str,
    most_pixels: int = MOST_PIXELS,
    *,
    channels: int | None = None,
    reduction: int = 1,
) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP, BMP, TIFF or PNM file to 8 bits a channel.

    Args:
        data: the content of the file.
        where: the name of the file, for the error message.
        most_pixels: an image whose header says more is not decoded.
        channels: 1 converts to grey and 3 to RGB (CMYK is converted, transparency dropped, 16 bits scaled to
            8, the orientation in EXIF applied); None keeps a grey file grey and makes everything else RGB.
        reduction: 1, 2, 4 or 8: height and width are divided by it, rounding up.

    Returns:
        The image, uint8 [height, width, channels].

    Raises:
        InputError: the file cannot be decoded, or is too large.
    """
    pixels = _num_pixels(data)
    if pixels > most_pixels:
        raise InputError(
            f"{where}: an image of {pixels / 1e6:,.1f} megapixels by its header; accepted: at most "
            f"{most_pixels / 1e6:,.15g} (data.max_megapixels)"
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS[channels] | _REDUCTIONS[reduction])
    except cv2.error:  # an empty file, or sizes beyond OpenCV's limit; most other damage gives None
        image = None
    if image is None:
        raise InputError(
            f"{where}: unreadable image ({len(data)} bytes); accepted: JPEG, PNG, WebP, BMP, TIFF, PNM"
        )
    if image.ndim == 2:
        return image[..., None]
    return image if channels == 3 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def stored_shape(image: Encoded) -> tuple[int, int, int]:
    """Height, width and channels of a file's image; of one that is too large to decode as its header says, in colour."""
    if _num_pixels(image.data) <= image.most_pixels:
        height, width, channels = decode(*image).shape
        return height, width, channels
    side = math.isqrt(_num_pixels(image.data))
    return side, side, 3


def _num_pixels(data: bytes) -> int:
    """How many pixels the header of a file speaks of; 0 where it says nothing."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return int.from_bytes(data[16:20]) * int.from_bytes(data[20:24])
    if (found := _jpeg_shape(data, turned=True)) is not None:
        return found[0] * found[1]
    try:
        with pillow.open(io.BytesIO(data)) as image:
            return image.width * image.height
    except pillow.DecompressionBombError as error:
        return int(re.search(r"\d+", str(error))[0])
    except Exception:  # Whatever Pillow says of what it cannot read; OpenCV has the last word.
        return 0


def encode(image: np.ndarray) -> bytes:
    """An image, uint8 [height, width, 1 or 3], as a PNG file, which loses nothing."""
    image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.shape[2] == 3 else image
    return cv2.imencode(".png", image)[1].tobytes()


# (height, width), or one number for both.
Size = int | tuple[int, int]


def sides(size: Size) -> tuple[int, int]:
    """(height, width)."""
    return (size, size) if isinstance(size, int) else size


def fit(
    image: Image, *, size: Size, channels: int, resize: int | None = None, stretch: bool = False
) -> np.ndarray:
    """An image, or its centre, of one size and number of channels.

    Args:
        image: uint8 [height, width, 1 or 3], or encoded.
        size: that of the result.
        channels: 1 or 3.
        resize: the short side to which the image is resized before ``size`` pixels are cut from its centre, as by
            torchvision's Resize and CenterCrop: 256 for 224 is the papers' evaluation on ImageNet. None resizes the
            largest centre part of that shape (a square for one number) to ``size``, averaging over areas.
        stretch: resize all of the image to ``size``, whatever its shape, as torchvision's Resize((height, width)).

    Returns:
        uint8 [*size, channels]; the image itself where nothing has to change.

    Raises:
        InputError: the image cannot be decoded, ``resize`` leaves less than ``size``, or there is ``stretch`` beside it.
    """
    image, (rows, columns) = as_array(image, channels), sides(size)
    if image.shape == (rows, columns, channels) and resize is None:
        return image
    if stretch and resize is not None:
        raise InputError(f"data.eval_resize: found {resize} beside data.stretch; accepted: one of them")
    if stretch:
        return resample(image, size)
    height, width, _ = image.shape
    # The part to cut: as large as the image allows, or exactly what is wanted of the resized one.
    high, wide = min(height, width * rows // columns), min(width, height * columns // rows)
    if resize is not None:
        short = min(height, width)
        height, width = (int(resize * side / short) for side in (height, width))
        if height < rows or width < columns:
            least = max(rows, columns)
            raise InputError(f"data.eval_resize: found {resize}; accepted: {least} (the image size) or more")
        image = resample(image, (height, width))
        high, wide = rows, columns
    # Python rounds halves to even, as torchvision's CenterCrop does.
    top, left = round((height - high) / 2), round((width - wide) / 2)
    image = image[top : top + max(1, high), left : left + max(1, wide)]
    if (high, wide) != (rows, columns):
        # Averaging over areas keeps a reduced image free of aliasing; it has no meaning for an enlarged one.
        interpolation = cv2.INTER_AREA if rows < high else cv2.INTER_LINEAR
        image = cv2.resize(image, (columns, rows), interpolation=interpolation)
    return image.reshape(rows, columns, channels)  # OpenCV and Pillow drop a single channel


# The filters of torchvision's resizing, which are Pillow's: widened where the image is reduced, so that nothing aliases.
FILTERS = {"bilinear": pillow.Resampling.BILINEAR, "bicubic": pillow.Resampling.BICUBIC}
# A reduced JPEG keeps so many times the pixels that are wanted, so that the filter still shapes the result.
_REDUCED_GAP = 2


def resample(
    image: np.ndarray,
    size: Size,
    *,
    box: tuple[float, float, float, float] | None = None,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """A part of an image, resized without aliasing: torchvision's crop and Resize(antialias=True) on a Pillow image.

    Pillow does the work, so the result is torchvision's to the bit.

    Args:
        image: uint8 [height, width, 1 or 3].
        size: that of the result.
        box: (left, top, right, bottom) of the part, which may cut pixels in two; None takes all of the image.
        interpolation: "bilinear" or "bicubic".

    Returns:
        uint8 [*size, channels].
    """
    rows, columns = sides(size)
    left, top, right, bottom = box or (0, 0, image.shape[1], image.shape[0])
    x, y = int(left), int(top)
    part = image[y : math.ceil(bottom), x : math.ceil(right)]
    picture = pillow.fromarray(part.squeeze(-1) if part.shape[2] == 1 else part)
    box = left - x, top - y, right - x, bottom - y
    resized = picture.resize((columns, rows), FILTERS[interpolation], box=box)
    return np.asarray(resized).reshape(rows, columns, -1)  # Pillow drops a single channel


def inception_crop(
    image: Image,
    rng: np.random.Generator,
    *,
    size: Size,
    channels: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
) -> np.ndarray:
    """A random part of an image, resized: the Inception crop (Szegedy et al. 2014), torchvision's RandomResizedCrop.

    The part's share of the area is uniform in ``scale``, the logarithm of its width over its height in ``ratio``; after ten
    draws that do not fit, the largest centre part with an aspect ratio in the range. A JPEG is decoded at the smallest of
    1, 1/2, 1/4, 1/8 of its size at which the part still has twice the pixels of ``size`` along both sides; docs/data.md
    says how far that is from resizing the whole.

    Args:
        image: uint8 [height, width, 1 or 3], or encoded.
        rng: two to forty numbers are drawn.
        size: that of the result.
        channels: 1 or 3.
        scale: smallest and largest share of the area.
        ratio: smallest and largest width over height.
        interpolation: see `resample`.

    Returns:
        uint8 [*size, channels].
    """
    rows, columns = sides(size)
    shape = _jpeg_shape(image.data) if isinstance(image, Encoded) else None
    if shape is None:
        image = as_array(image, channels)
        shape = image.shape[:2]
    top, left, height, width = _crop_box(rng, *shape, scale, ratio)
    box = left, top, left + width, top + height
    if isinstance(image, Encoded):
        most = min(height / rows, width / columns) / _REDUCED_GAP
        reduction = next((reduction for reduction in (8, 4, 2) if reduction <= most), 1)
        image = decode(*image, channels=channels, reduction=reduction)
        box = tuple(side / reduction for side in box)
    image = as_array(image, channels)
    if interpolation == "bilinear" and height <= rows and width <= columns:
        # Nothing is reduced: OpenCV's linear interpolation is the same, to one level, in a third of the time.
        part = image[top : top + height, left : left + width]
        return cv2.resize(part, (columns, rows), interpolation=cv2.INTER_LINEAR).reshape(rows, columns, -1)
    return resample(image, size, box=box, interpolation=interpolation)


def _crop_box(rng, height: int, width: int, scale, ratio) -> tuple[int, int, int, int]:
    """(top, left, height, width) of an Inception crop."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def as_array(image: Image, channels: int) -> np.ndarray:
    """The decoded image with the wanted number of channels, 1 or 3."""
    if isinstance(image, Encoded):
        return decode(*image, channels=channels)
    if channels < image.shape[2]:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    return np.repeat(image, 3, axis=-1) if channels > image.shape[2] else image


def _jpeg_shape(data: bytes, *, turned: bool = False) -> tuple[int, int] | None:
    """Height and width of a JPEG by its header; None for other files and, unless ``turned``, where EXIF may turn it."""
    if data[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if not turned and marker == 0xE1 and data[place + 4 : place + 8] == b"Exif":
            return None
        # Start of frame; 0xC4, 0xC8 and 0xCC are tables and an extension.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[place + i : place + i + 2]) for i in (5, 7))
            return (height, width) if height and width else None
        place += 2 + length
    return None


def random_shift(image: np.ndarray, rng: np.random.Generator, max_shift: float) -> np.ndarray:
    """Moves an image by up to ``max_shift`` pixels along both axes, zeros filling the gap.

    The shift is real and pixels are interpolated: on images of a few pixels, such as digits, whole pixels are
    too coarse a step.
    """
    right, down = rng.uniform(-max_shift, max_shift, size=2)
    height, width, channels = image.shape
    shifted = cv2.warpAffine(image, np.array([[1, 0, right], [0, 1, down]]), (width, height))
    return shifted.reshape(height, width, channels)  # OpenCV drops a single channel


def random_crop(image: np.ndarray, rng: np.random.Generator, padding: int) -> np.ndarray:
    """Pads an image with ``padding`` zeros on each side and crops its size at random (CIFAR's recipe)."""
    height, width, channels = image.shape
    padded = cv2.copyMakeBorder(image, padding, padding, padding, padding, cv2.BORDER_CONSTANT)
    top, left = (int(rng.random() * (2 * padding + 1)) for _ in range(2))
    return padded.reshape(height + 2 * padding, width + 2 * padding, channels)[
        top : top + height, left : left + width
    ]


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors an image left to right with probability 1/2."""
    # NumPy's mirrored view costs twenty times as much to copy into the batch.
    return cv2.flip(image, 1).reshape(image.shape) if rng.random() < 0.5 else image
