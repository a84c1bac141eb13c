"""Maps and masks drawn over images, as arrays of 0 … 255."""

from collections.abc import Sequence

import cv2
import numpy as np

from crate_jax import InputError

# Colour-blind safe (Okabe and Ito), in the order of the objects.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167))


def heat(image: np.ndarray, values: np.ndarray, *, strength: float = 0.6) -> np.ndarray:
    """An image in grey under a map, from dark blue (its smallest value) to yellow (its largest).

    Args:
      image: `[h, w, 1 or 3]`, 0 … 255.
      values: `[rows, columns]`, one value per patch or finer; spread over the image without smoothing.
      strength: share of the map in the picture.
    Returns:
      uint8 `[h, w, 3]`.
    """
    height, width = image.shape[:2]
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    level = _spread(np.rint(255 * scaled).astype(np.uint8), (height, width))
    colour = cv2.applyColorMap(level, cv2.COLORMAP_CIVIDIS)[..., ::-1]
    grey = _rgb(image).mean(axis=-1, keepdims=True)
    return np.rint((1 - strength) * grey + strength * colour).astype(np.uint8)


def outlined(image: np.ndarray, masks: Sequence[np.ndarray], *, strength: float = 0.45) -> np.ndarray:
    """An image with its objects tinted and outlined, each in a colour of its own.

    Args:
      image: `[h, w, 1 or 3]`, 0 … 255.
      masks: bool `[rows, columns]` each, in tokens or pixels.
      strength: share of the colour inside of a mask.
    Returns:
      uint8 `[h, w, 3]`.
    """
    out = _rgb(image).copy()
    for mask, colour in zip(masks, _colours(len(masks)), strict=True):
        area = _spread(mask.astype(np.uint8), image.shape[:2])
        inside = area > 0
        out[inside] = (1 - strength) * out[inside] + strength * np.array(colour)
        edges, _ = cv2.findContours(area, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        thickness = max(1, min(image.shape[:2]) // 150)
        canvas = out.astype(np.uint8)
        cv2.drawContours(canvas, edges, -1, colour, thickness)
        out = canvas.astype(np.float32)
    return np.rint(out).astype(np.uint8)


def painted(colours: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Colours per token `[rows, columns, 3]` in [0, 1] as a picture `[h, w, 3]`, uint8."""
    return _spread(np.rint(255 * colours).astype(np.uint8), shape)


def enlarged(image: np.ndarray, least: int) -> np.ndarray:
    """The image, repeated by a whole number until its short side has at least so many pixels."""
    times = max(1, -(-least // min(image.shape[:2])))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def _colours(count: int) -> list[tuple[int, int, int]]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _rgb(image: np.ndarray) -> np.ndarray:
    """float32 `[h, w, 3]`."""
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise InputError(f"image to draw over: found shape {image.shape}; accepted: [h, w, 1] or [h, w, 3]")
    return np.broadcast_to(np.asarray(image, np.float32), (*image.shape[:2], 3))


def _spread(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Each value over its share of the pixels."""
    return cv2.resize(values, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)
