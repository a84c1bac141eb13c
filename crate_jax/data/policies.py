"""Augmentation of colour and shape by random policies, on uint8 RGB images; the operations are Pillow's.

RandAugment exists on two scales. torchvision's magnitudes go from 0 to 30; timm's and big_vision's, with which CRATE-α and
ToST were trained, from 0 to 10, with a probability for each operation and three operations more.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

_LARGEST = 30  # The largest magnitude of torchvision's scale,
_LARGEST_TIMM = 10  # and of timm's.
_NEAREST = Image.Resampling.NEAREST
_BLACK = (0, 0, 0)
# What timm's geometric operations leave uncovered: the mean colour of ImageNet.
_MEAN = (124, 116, 104)

Operation = Callable[..., Image.Image]  # Of an image and an amount.


def _affine(matrix: Callable[[float], tuple[float, ...]]) -> Operation:
    """The operation that fills (x, y) with what stood at (a x + b y + c, d x + e y + f)."""

    def operation(image: Image.Image, amount: float, resample=_NEAREST, fill=_BLACK) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix(amount), resample, fillcolor=fill)

    return operation


_shear_x = _affine(lambda amount: (1, amount, 0, 0, 1, 0))
_shear_y = _affine(lambda amount: (1, 0, 0, amount, 1, 0))
_translate_x = _affine(lambda amount: (1, 0, amount, 0, 1, 0))
_translate_y = _affine(lambda amount: (1, 0, 0, 0, 1, amount))


def _rotate(image: Image.Image, amount: float, resample=_NEAREST, fill=_BLACK) -> Image.Image:
    return image.rotate(amount, resample, fillcolor=fill)


def _enhance(kind: type) -> Operation:
    return lambda image, amount: kind(image).enhance(1 + amount)


def _posterize(image: Image.Image, amount: float) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(amount))


def _solarize(image: Image.Image, amount: float) -> Image.Image:
    """Inverts the values of 255 (1 − amount/256) and above; at 0 none, where torchvision still inverts 255."""
    return ImageOps.solarize(image, 255 * (1 - amount / 256) if amount else 256)


def _keep_bits(image: Image.Image, bits: int) -> Image.Image:
    """ImageOps.posterize, which refuses to keep no bits at all: black."""
    return image.point([value >> (8 - bits) << (8 - bits) for value in range(256)] * 3)


def _solarize_add(image: Image.Image, amount: int) -> Image.Image:
    """Adds to the values below 128."""
    return image.point([min(255, value + amount) if value < 128 else value for value in range(256)] * 3)


# name → (operation, its amount at the largest magnitude in RandAugment, the same in TrivialAugment, is the sign random).
# Translations by a share of the image's side in RandAugment, by pixels in TrivialAugment; whole pixels, cut off.
_OPERATIONS: dict[str, tuple[Operation, float, float, bool]] = {
    "identity": (lambda image, amount: image, 0, 0, False),
    "shear_x": (_shear_x, 0.3, 0.99, True),
    "shear_y": (_shear_y, 0.3, 0.99, True),
    "translate_x": (lambda image, amount: _translate_x(image, int(amount)), 150 / 331, 32, True),
    "translate_y": (lambda image, amount: _translate_y(image, int(amount)), 150 / 331, 32, True),
    "rotate": (_rotate, 30, 135, True),
    "brightness": (_enhance(ImageEnhance.Brightness), 0.9, 0.99, True),
    "color": (_enhance(ImageEnhance.Color), 0.9, 0.99, True),
    "contrast": (_enhance(ImageEnhance.Contrast), 0.9, 0.99, True),
    "sharpness": (_enhance(ImageEnhance.Sharpness), 0.9, 0.99, True),
    "posterize": (_posterize, 4, 6, False),
    "solarize": (_solarize, 256, 256, False),
    "autocontrast": (lambda image, amount: ImageOps.autocontrast(image), 0, 0, False),
    "equalize": (lambda image, amount: ImageOps.equalize(image), 0, 0, False),
}


def randaugment(image: np.ndarray, rng: np.random.Generator, operations: int, magnitude: int) -> np.ndarray:
    """RandAugment (Cubuk et al. 2019) as torchvision has it: random ones of fourteen operations, at one magnitude.

    Args:
        image: uint8 [height, width, 3].
        rng: decides which, and the sign where there is one.
        operations: how many, one after the other.
        magnitude: 0 to 30.
    """
    picture = Image.fromarray(image)
    for _ in range(operations):
        name = list(_OPERATIONS)[int(rng.random() * len(_OPERATIONS))]
        operation, largest, _, signed = _OPERATIONS[name]
        amount = largest * magnitude / _LARGEST
        if name.startswith("translate"):
            amount *= picture.width if name == "translate_x" else picture.height
        picture = operation(picture, -amount if signed and rng.random() < 0.5 else amount)
    return np.asarray(picture)


# name → (operation, its amount at the largest magnitude, is the sign random). Geometric ones are told how to interpolate.
_TIMM_GEOMETRY = {
    "rotate": (_rotate, 30),
    "shear_x": (_shear_x, 0.3),
    "shear_y": (_shear_y, 0.3),
    "translate_x": (lambda image, amount, **how: _translate_x(image, amount * image.width, **how), 0.45),
    "translate_y": (lambda image, amount, **how: _translate_y(image, amount * image.height, **how), 0.45),
}
_TIMM_COLOURS: dict[str, tuple[Operation, float, bool]] = {
    "autocontrast": (lambda image, amount: ImageOps.autocontrast(image), 0, False),
    "equalize": (lambda image, amount: ImageOps.equalize(image), 0, False),
    "invert": (lambda image, amount: ImageOps.invert(image), 0, False),
    "posterize": (lambda image, amount: _keep_bits(image, 4 - int(amount)), 4, False),
    "solarize": (lambda image, amount: ImageOps.solarize(image, 256 - int(amount)), 256, False),
    "solarize_add": (lambda image, amount: _solarize_add(image, int(amount)), 110, False),
    "color": (_enhance(ImageEnhance.Color), 0.9, True),
    "contrast": (_enhance(ImageEnhance.Contrast), 0.9, True),
    "brightness": (_enhance(ImageEnhance.Brightness), 0.9, True),
    "sharpness": (_enhance(ImageEnhance.Sharpness), 0.9, True),
}
_TIMM_OPERATIONS = (*_TIMM_GEOMETRY, *_TIMM_COLOURS)


def randaugment_timm(
    image: np.ndarray,
    rng: np.random.Generator,
    operations: int,
    magnitude: float,
    resample: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """RandAugment as timm and big_vision have it ("rand-m9-mstd0.5-inc1" is `operations=2, magnitude=9`).

    Random ones of fifteen operations, each done with probability 1/2, at a magnitude of its own: normal with standard
    deviation 1/2, cut off at 0 and 10. What geometric operations leave uncovered gets ImageNet's mean colour.

    Args:
        image: uint8 [height, width, 3].
        rng: decides which, whether, how strongly, and the sign where there is one.
        operations: how many are drawn, one after the other.
        magnitude: 0 to 10, the mean.
        resample: Pillow's filter for the geometric operations.
    """
    picture = Image.fromarray(image)
    for _ in range(operations):
        name = _TIMM_OPERATIONS[int(rng.random() * len(_TIMM_OPERATIONS))]
        if rng.random() < 0.5:
            continue
        level = min(max(rng.normal(magnitude, 0.5), 0), _LARGEST_TIMM) / _LARGEST_TIMM
        picture = _timm_operation(picture, name, level, -1 if rng.random() < 0.5 else 1, resample)
    return np.asarray(picture)


def _timm_operation(
    picture: Image.Image, name: str, level: float, sign: int, resample: Image.Resampling
) -> Image.Image:
    """An operation at a share of its largest amount; `sign` counts where it has one."""
    if name in _TIMM_GEOMETRY:
        operation, largest = _TIMM_GEOMETRY[name]
        return operation(picture, sign * largest * level, resample=resample, fill=_MEAN)
    operation, largest, signed = _TIMM_COLOURS[name]
    return operation(picture, (sign if signed else 1) * largest * level)


def trivial_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """TrivialAugment, wide (Müller and Hutter 2021): one random operation of fourteen at a random magnitude of 0 to 30."""
    name = list(_OPERATIONS)[int(rng.random() * len(_OPERATIONS))]
    operation, _, largest, signed = _OPERATIONS[name]
    amount = largest * int(rng.random() * (_LARGEST + 1)) / _LARGEST
    sign = -1 if signed and rng.random() < 0.5 else 1
    return np.asarray(operation(Image.fromarray(image), sign * amount))


def three_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Three-augment (Touvron et al. 2022, DeiT III): grey, solarised or blurred, a third each.

    Values above 127 are inverted; the blur's standard deviation is uniform in 0.1 to 2 pixels.
    """
    picture, choice = Image.fromarray(image), int(rng.random() * 3)
    if choice == 0:
        picture = ImageOps.grayscale(picture).convert("RGB")
    elif choice == 1:
        picture = ImageOps.solarize(picture, 128)
    else:
        picture = picture.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * rng.random()))
    return np.asarray(picture)


def color_jitter(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Brightness, contrast and colour, in random order, each scaled by a factor uniform in [1 − strength, 1 + strength]."""
    picture = Image.fromarray(image)
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for i in rng.permutation(len(kinds)):
        picture = kinds[i](picture).enhance(1 + strength * (2 * rng.random() - 1))
    return np.asarray(picture)
