"""Sheets of images."""

from collections.abc import Sequence

import cv2
import numpy as np


def image_grid(pictures: Sequence[np.ndarray], *, pixels: int = 64) -> bytes:
    """A PNG of many small images, about as many rows as columns.

    Args:
      pictures: arrays `[n, h, w, 1 or 3]` with values 0 … 255; the i-th images of all of them stand side by side.
      pixels: every image is enlarged, by a whole number, to about this height.
    """
    scale = max(1, pixels // pictures[0].shape[1])
    large = [np.repeat(np.repeat(np.rint(p), scale, axis=1), scale, axis=2) for p in pictures]
    # A thin line between what belongs together, a thick one around it.
    thin, thick = 2, 8
    tiles = np.concatenate(
        [np.pad(p, ((0, 0), (0, 0), (0, thin), (0, 0)), constant_values=255) for p in large], axis=2
    )
    tiles = np.pad(tiles[:, :, :-thin], ((0, 0), (0, thick), (0, thick), (0, 0)), constant_values=255)
    n, h, w, c = tiles.shape
    columns = max(1, round(np.sqrt(n * h / w)))
    tiles = np.pad(tiles, ((0, -n % columns), (0, 0), (0, 0), (0, 0)), constant_values=255)
    grid = tiles.reshape(-1, columns, h, w, c).swapaxes(1, 2).reshape(-1, columns * w, c).astype(np.uint8)
    grid = np.pad(grid, ((thick, 0), (thick, 0), (0, 0)), constant_values=255)
    return cv2.imencode(".png", grid[..., ::-1])[1].tobytes()
