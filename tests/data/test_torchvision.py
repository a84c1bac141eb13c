"""Crops, resizing and random policies against torchvision 0.28 and timm 1.0 on images of Pillow 13.

tests/fixtures/transforms_torchvision.npz holds what they made of a drawn picture with ramps, edges and noise, 60×80, and of
a part of it, 16×16: `crop/FILTER/i` of `resized_crop` to 24×24, `stretch` of `resize`; of torchvision's operations
`randaugment/OPERATION/MAGNITUDE/SIGN` and `trivial/…`; of timm's "increasing" ones `timm/OPERATION/MAGNITUDE/FILTER/SIGN`.
"""

from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from crate_jax.data import policies, transforms

GOLDEN = dict(np.load(Path(__file__).parents[1] / "fixtures" / "transforms_torchvision.npz"))
TOLERANCE = 1  # Levels of 255.


def entries(kind: str) -> list[list[str]]:
    return [name.split("/")[1:] for name in GOLDEN if name.startswith(f"{kind}/")]


def snake(name: str) -> str:
    name = name.removesuffix("Increasing").removesuffix("Rel")
    if name == "AutoContrast":
        return "autocontrast"
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops(interpolation):
    if interpolation == "bicubic" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow before 13 cut bicubic's overshoots off between its two passes")
    for i, (top, left, height, width) in enumerate(GOLDEN["crops"]):
        box = left, top, left + width, top + height
        found = transforms.resample(GOLDEN["image"], 24, box=box, interpolation=interpolation)
        np.testing.assert_allclose(
            found.astype(int), GOLDEN[f"crop/{interpolation}/{i}"], rtol=0, atol=TOLERANCE
        )


def test_stretching():
    found = transforms.fit(GOLDEN["image"], size=24, channels=3, stretch=True)
    np.testing.assert_allclose(found.astype(int), GOLDEN["stretch"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("kind", "column"), [("randaugment", 1), ("trivial", 2)])
def test_torchvisions_operations(kind, column):
    image = Image.fromarray(GOLDEN["small"])
    names = set()
    for name, magnitude, sign in entries(kind):
        row = policies._OPERATIONS[snake(name)]
        amount = row[column] * int(magnitude) / 30 * int(sign)
        if name.startswith("Translate"):
            # torchvision moves the picture, we where it is read.
            amount *= -(16 if kind == "randaugment" else 1)
        expected = GOLDEN[f"{kind}/{name}/{magnitude}/{sign}"].astype(int)
        np.testing.assert_allclose(
            np.asarray(row[0](image, amount)), expected, rtol=0, atol=TOLERANCE, err_msg=f"{name} {amount}"
        )
        names.add(snake(name))
    assert names == set(policies._OPERATIONS)


def test_timms_operations():
    image = Image.fromarray(GOLDEN["small"])
    names = set()
    for name, magnitude, interpolation, sign in entries("timm"):
        resample = transforms.FILTERS[interpolation]
        found = policies._timm_operation(image, snake(name), int(magnitude) / 10, int(sign), resample)
        expected = GOLDEN[f"timm/{name}/{magnitude}/{interpolation}/{sign}"].astype(int)
        np.testing.assert_allclose(
            np.asarray(found), expected, rtol=0, atol=TOLERANCE, err_msg=f"{name} {magnitude} {sign}"
        )
        names.add(snake(name))
    assert names == set(policies._TIMM_OPERATIONS)
