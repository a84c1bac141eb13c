"""Draws the pictures of docs/segmentation.md: MaskCut of two photographs that ship with scikit-learn, by colour alone.

python docs/segmentation_figures.py
"""

from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_sample_image

from crate_jax.analysis import overlays
from crate_jax.analysis.maskcut import KEPT, maskcut
from crate_jax.analysis.sheets import sheet

PATCH = 8


def colours(image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Each patch's mean CIELAB colour and half its deviation, centred, `[n, 6]`; and the grid."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    rows, columns = image.shape[0] // PATCH, image.shape[1] // PATCH
    patches = lab.reshape(rows, PATCH, columns, PATCH, 3).swapaxes(1, 2).reshape(rows * columns, PATCH**2, 3)
    features = np.concatenate([patches.mean(axis=1), patches.std(axis=1) / 2], axis=1)
    return features - features.mean(axis=0), (rows, columns)


def main() -> None:
    tiles = []
    for name in ("flower.jpg", "china.jpg"):
        image = np.ascontiguousarray(load_sample_image(name)[:424, :640])
        features, grid = colours(image)
        cuts = maskcut(features, grid)
        masks = [cut.mask for cut in cuts if cut.verdict == KEPT]
        tiles += [
            (name, image),
            ("first eigenvector", overlays.heat(image, cuts[0].eigenvector, strength=0.8)),
            ("mask", overlays.outlined(image, masks)),
        ]
        print(name, grid, [(cut.verdict, cut.box, round(cut.eigenvalue, 4)) for cut in cuts])
    (Path(__file__).parent / "maskcut.png").write_bytes(sheet(tiles, columns=3, side=150))


if __name__ == "__main__":
    main()
