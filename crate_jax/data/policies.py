"""Augmentation of colour and shape by random policies, on uint8 RGB images; the operations are Pillow's.

Ranges and definitions follow torchvision's, whose 31 magnitudes (0 to 30) are those of the released recipes.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

_MAGNITUDES = 30  # The largest.
_FILL = (0, 0, 0)

Operation = Callable[[Image.Image, float], Image.Image]


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, fillcolor=_FILL)


def _shear_x(image: Image.Image, amount: float) -> Image.Image:
    return _affine(image, 1, amount, 0, 0, 1, 0)


def _shear_y(image: Image.Image, amount: float) -> Image.Image:
    return _affine(image, 1, 0, 0, amount, 1, 0)


def _translate_x(image: Image.Image, amount: float) -> Image.Image:
    return _affine(image, 1, 0, round(amount), 0, 1, 0)


def _translate_y(image: Image.Image, amount: float) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, round(amount))


def _rotate(image: Image.Image, amount: float) -> Image.Image:
    return image.rotate(amount, fillcolor=_FILL)


def _enhance(kind: type) -> Operation:
    return lambda image, amount: kind(image).enhance(1 + amount)


def _posterize(image: Image.Image, amount: float) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(amount))


def _solarize(image: Image.Image, amount: float) -> Image.Image:
    return ImageOps.solarize(image, 256 - round(amount))


# name → (operation, its amount at the largest magnitude in RandAugment, the same in TrivialAugment, is the sign random).
# Translations by a share of the image's side in RandAugment, by pixels in TrivialAugment.
_OPERATIONS: dict[str, tuple[Operation, float, float, bool]] = {
    "identity": (lambda image, amount: image, 0, 0, False),
    "shear_x": (_shear_x, 0.3, 0.99, True),
    "shear_y": (_shear_y, 0.3, 0.99, True),
    "translate_x": (_translate_x, 150 / 331, 32, True),
    "translate_y": (_translate_y, 150 / 331, 32, True),
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
    """RandAugment (Cubuk et al. 2019): ``operations`` random ones of fourteen, one after the other, at one magnitude.

    Args:
        image: uint8 [height, width, 3].
        rng: decides which, and the sign where there is one.
        operations: their number.
        magnitude: 0 to 30.
    """
    picture = Image.fromarray(image)
    for _ in range(operations):
        name = list(_OPERATIONS)[int(rng.random() * len(_OPERATIONS))]
        operation, largest, _, signed = _OPERATIONS[name]
        amount = largest * magnitude / _MAGNITUDES
        if name.startswith("translate"):
            amount *= picture.width if name == "translate_x" else picture.height
        picture = operation(picture, -amount if signed and rng.random() < 0.5 else amount)
    return np.asarray(picture)


def trivial_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """TrivialAugment, wide (Müller and Hutter 2021): one random operation of fourteen at a random magnitude of 0 to 30."""
    name = list(_OPERATIONS)[int(rng.random() * len(_OPERATIONS))]
    operation, _, largest, signed = _OPERATIONS[name]
    amount = largest * int(rng.random() * (_MAGNITUDES + 1)) / _MAGNITUDES
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
