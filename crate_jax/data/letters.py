"""Printed letters as small as scikit-learn's digits: another data set for models of these, drawn without a network."""

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from crate_jax.data.arrays import ArraySource
from crate_jax.data.dataset import LabelledImages, Source, held_out_fifth

# Files that come with matplotlib: three families of DejaVu, Computer Modern and STIX, upright, bold and slanted.
FONTS = (
    *(
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-Oblique",
        "DejaVuSansMono",
        "DejaVuSerif",
        "DejaVuSerif-Italic",
    ),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10"),
)
PER_FONT = 5
_SIDE, _DRAWN = 8, 64


class Letters(LabelledImages):
    """The letters A to Z in twelve fonts, see `sources`."""

    classes = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    white = 16

    def __init__(self):
        count = len(self.classes) * len(FONTS) * PER_FONT
        self._labels = np.repeat(np.arange(len(self.classes), dtype=np.int32), len(FONTS) * PER_FONT)
        self._chosen = held_out_fifth(self._labels, "letters")
        self.splits = {split: len(chosen) for split, chosen in self._chosen.items()}
        # Bit generators give the same stream in every version of numpy, which Generator's methods do not promise.
        self._chance = (np.random.Philox(key=1).random_raw(4 * count) / 2**64).reshape(count, 4)

    def natural_shape(self) -> tuple[int, int]:
        return _SIDE, 1

    def load(self, split: str) -> Source:
        folder = Path(importlib.util.find_spec("matplotlib").origin).parent / "mpl-data" / "fonts" / "ttf"
        fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), 60) for name in FONTS]
        chosen = self._chosen[split]
        images = [
            _draw(self.classes[self._labels[i]], fonts[i // PER_FONT % len(FONTS)], self._chance[i])
            for i in chosen
        ]
        return ArraySource(np.stack(images), self._labels[chosen])


def _draw(letter: str, font: ImageFont.FreeTypeFont, chance: np.ndarray) -> np.ndarray:
    """A letter in white on black, about three quarters of the image high, turned, scaled and shifted by chance."""
    angle, scale, right, down = 2 * chance - 1
    left, top, end, bottom = font.getbbox(letter)
    large = Image.new("L", (2 * _DRAWN, 2 * _DRAWN))
    middle = (_DRAWN - (left + end) / 2, _DRAWN - (top + bottom) / 2)
    ImageDraw.Draw(large).text(middle, letter, fill=255, font=font)
    turned = large.rotate(12 * angle, resample=Image.Resampling.BILINEAR)
    half = 0.65 * max(end - left, bottom - top) * (1 + 0.12 * scale)
    x, y = _DRAWN + 4 * right, _DRAWN + 4 * down
    small = turned.resize((_SIDE, _SIDE), Image.Resampling.BOX, box=(x - half, y - half, x + half, y + half))
    return np.rint(np.asarray(small, float) * 16 / 255).astype(np.uint8)[..., None]
