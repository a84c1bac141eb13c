"""Palettes: fitted colours, files, errors."""

import numpy as np
import pytest

from crate_jax import InputError
from crate_jax.data import palette


class Images:
    """Noise around four colours."""

    COLOURS = np.array([[20, 30, 200], [200, 40, 40], [240, 240, 230], [60, 180, 75]])

    def __len__(self):
        return 12

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        image = self.COLOURS[rng.integers(4, size=(8, 8))] + rng.integers(-5, 6, size=(8, 8, 3))
        return {"image": image.astype(np.uint8), "label": np.int32(0)}


def test_kmeans_finds_the_colours():
    colours = palette.fit(Images(), 4)
    assert colours.dtype == np.float32 and np.abs(colours).max() <= 1
    found = 127.5 * (colours + 1)
    expected = Images.COLOURS[np.argsort(Images.COLOURS.sum(axis=1))]
    np.testing.assert_allclose(found, expected, atol=2)
    np.testing.assert_array_equal(colours, palette.fit(Images(), 4))


def test_more_colours_than_there_are_is_refused():
    with pytest.raises(InputError, match=r"palette: the images have \d+ colours; accepted: 100000 or more"):
        palette.fit(Images(), 100_000)


def test_saved_palettes_load(tmp_path):
    colours = np.random.default_rng(0).uniform(-1, 1, (512, 3)).astype(np.float32)
    palette.save(colours, tmp_path / "palette.npy")
    np.testing.assert_array_equal(palette.load(tmp_path / "palette.npy"), colours)
    assert [path.name for path in tmp_path.iterdir()] == ["palette.npy"]
    np.save(tmp_path / "released.npy", colours.astype(np.float64))
    assert palette.load(tmp_path / "released.npy").dtype == np.float32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file"),
        (b"not an array", "cannot be read"),
        (np.zeros((512, 4)), r"holds \(512, 4\); accepted: a .npy file of \[k, 3\] numbers in \[-1, 1\]"),
        (np.full((8, 3), 200), "numbers outside"),
        (np.full((8, 3), np.nan), "numbers outside"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "colours.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(InputError, match=message):
        palette.load(path)
