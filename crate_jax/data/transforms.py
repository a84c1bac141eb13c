"""Functions on one image: decoding, conversion to the wanted shape, and random augmentation.

An image is a uint8 array [height, width, channels] with channels 1 (grey) or 3 (RGB). Whatever is random is
given its ``np.random.Generator``, so the caller decides what the result depends on.
"""

import dataclasses

import cv2
import numpy as np

from crate_jax import InputError

# The pipeline's own threads already occupy the cores; OpenCV's would only compete with them.
cv2.setNumThreads(0)


def decode(data: bytes, *, channels: int | None = None, where: str) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP, BMP, TIFF or PNM file to 8 bits a channel.

    Args:
        data: the content of the file.
        channels: 1 converts to grey and 3 to RGB (CMYK is converted, transparency dropped, 16 bits scaled to
            8, the orientation in EXIF applied); None keeps a grey file grey and makes everything else RGB.
        where: the name of the file, for the error message.

    Returns:
        The image, uint8 [height, width, channels].

    Raises:
        InputError: the file cannot be decoded.
    """
    flags = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR, None: cv2.IMREAD_ANYCOLOR}[channels]
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # an empty file, or sizes beyond OpenCV's limit; most other damage gives None
        image = None
    if image is None:
        raise InputError(
            f"{where}: unreadable image ({len(data)} bytes); accepted: JPEG, PNG, WebP, BMP, TIFF, PNM"
        )
    return image[..., None] if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def fit(image: np.ndarray, *, size: int, channels: int) -> np.ndarray:
    """The centre square of an image, resized to ``size`` and converted to ``channels``.

    Args:
        image: uint8 [height, width, 1 or 3].
        size: height and width of the result.
        channels: 1 or 3.

    Returns:
        uint8 [size, size, channels]; the image itself where nothing has to change.
    """
    if image.shape == (size, size, channels):
        return image
    height, width, found = image.shape
    if channels < found:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    image = image[top : top + short, left : left + short]
    if short != size:
        # Averaging over areas keeps a reduced image free of aliasing; it has no meaning for an enlarged one.
        interpolation = cv2.INTER_AREA if size < short else cv2.INTER_LINEAR
        image = cv2.resize(image, (size, size), interpolation=interpolation)
    image = image.reshape(size, size, -1)  # OpenCV drops a single channel
    return np.repeat(image, 3, axis=-1) if channels > image.shape[-1] else image


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
    top, left = rng.integers(2 * padding + 1, size=2)
    return padded.reshape(height + 2 * padding, width + 2 * padding, channels)[
        top : top + height, left : left + width
    ]


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors an image left to right with probability 1/2."""
    return image[:, ::-1] if rng.integers(2) else image


@dataclasses.dataclass(frozen=True)
class Augment:
    """The augmentation of one training example; the default does nothing.

    Attributes:
        shift: largest shift in pixels, may be a fraction, see `random_shift`.
        flip: mirror half of the examples.
        crop_padding: pixels added on each side before a random crop, see `random_crop`.
    """

    shift: float = 0.0
    flip: bool = False
    crop_padding: int = 0

    def __post_init__(self):
        for name in ("shift", "crop_padding"):
            if getattr(self, name) < 0:
                raise InputError(f"augmentation: {name} is {getattr(self, name)}; accepted: 0 or more pixels")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augments an image, uint8 [height, width, channels]; the shape stays."""
        if self.shift:
            image = random_shift(image, rng, self.shift)
        if self.crop_padding:
            image = random_crop(image, rng, self.crop_padding)
        if self.flip:
            image = random_flip(image, rng)
        return image
