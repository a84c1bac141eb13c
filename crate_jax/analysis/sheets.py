"""Labelled pictures side by side."""

from collections.abc import Sequence

import cv2
import numpy as np

# Height of a label, the gap between tiles, in pixels.
LABEL, GAP = 22, 8


def sheet(tiles: Sequence[tuple[str, np.ndarray]], *, columns: int | None = None, side: int = 168) -> bytes:
    """A PNG of pictures with a label over each.

    Args:
      tiles: (label, uint8 `[h, w, 3]`); each picture is brought to `side` pixels of height, pixels stay sharp.
      columns: pictures in a row; by default all, three at most, which can be made out on a phone.
      side: pixels.
    """
    columns = columns or min(len(tiles), 3)
    drawn = [_labelled(label, _sized(picture, side)) for label, picture in tiles]
    width = max(each.shape[1] for each in drawn)
    drawn = [_to_width(each, width) for each in drawn]
    while len(drawn) % columns:
        drawn.append(np.full_like(drawn[0], 255))
    rows = [
        np.concatenate(
            [np.pad(each, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for each in row], axis=1
        )
        for row in (drawn[start : start + columns] for start in range(0, len(drawn), columns))
    ]
    whole = np.concatenate(rows)[:-GAP, :-GAP]
    return cv2.imencode(".png", whole[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def _sized(picture: np.ndarray, side: int) -> np.ndarray:
    height, width = picture.shape[:2]
    shape = (max(1, round(width * side / height)), side)
    shrinks = height > side
    return cv2.resize(picture, shape, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)


def _labelled(label: str, picture: np.ndarray) -> np.ndarray:
    strip = np.full((LABEL, picture.shape[1], 3), 255, np.uint8)
    if label:
        # The font knows ASCII alone.
        text = label.encode("ascii", "replace").decode()
        cv2.putText(strip, text, (1, LABEL - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.46, (60, 60, 60), 1, cv2.LINE_AA)
    return np.concatenate([strip, picture])


def _to_width(tile: np.ndarray, width: int) -> np.ndarray:
    return np.pad(tile, ((0, 0), (0, width - tile.shape[1]), (0, 0)), constant_values=255)
