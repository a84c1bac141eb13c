"""Colour palettes: a few hundred colours that stand for all, one token each (9 bits a pixel for 512 of them).

A palette is float32 `[k, 3]`, RGB in [−1, 1], as the cluster files released with iGPT; it lies in a .npy file.
"""

from pathlib import Path

import numpy as np

from crate_jax import InputError
from crate_jax.data import files
from crate_jax.data.dataset import Source

# Enough for a stable palette: about a thousand pixels a colour and images from all over the dataset.
_PIXELS = 2**19
_IMAGES = 4096


def fit(source: Source, num_colours: int, *, seed: int = 0) -> np.ndarray:
    """The centres of k-means over pixels of the images (scikit-learn's MiniBatchKMeans).

    Args:
        source: RGB images.
        num_colours: k.
        seed: decides which pixels are looked at and where the search starts.

    Returns:
        The palette, float32 [k, 3], from dark to light.

    Raises:
        InputError: images with fewer different colours than k.
    """
    from sklearn.cluster import MiniBatchKMeans  # takes a second to import

    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(source))[:_IMAGES]
    share = -(-_PIXELS // len(chosen))
    pixels = []
    for i in chosen:
        image = source[i]["image"].reshape(-1, 3)
        pixels.append(image if len(image) <= share else rng.choice(image, share, replace=False))
    pixels = np.concatenate(pixels)
    found = len(np.unique(pixels, axis=0))
    if found < num_colours:
        raise InputError(f"palette: the images have {found} colours; accepted: {num_colours} or more")
    kmeans = MiniBatchKMeans(num_colours, batch_size=16384, max_iter=20, n_init=1, random_state=seed)
    centres = kmeans.fit(pixels.astype(np.float32) / 127.5 - 1).cluster_centers_
    return centres[np.argsort(centres.sum(axis=1))].astype(np.float32)


def load(path: Path) -> np.ndarray:
    """A palette from a file, such as one released with iGPT.

    Raises:
        InputError: no such file, or not a .npy of `[k, 3]` numbers in [−1, 1].
    """
    accepted = "accepted: a .npy file of [k, 3] numbers in [-1, 1]"
    if not Path(path).is_file():
        raise InputError(f"palette: no file {path}; {accepted}")
    try:
        colours = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"palette: {path} cannot be read ({error}); {accepted}") from None
    if not isinstance(colours, np.ndarray) or colours.ndim != 2 or colours.shape[1] != 3:
        raise InputError(f"palette: {path} holds {getattr(colours, 'shape', 'several arrays')}; {accepted}")
    if colours.dtype.kind not in "fiu" or not np.all(np.abs(colours.astype(np.float64)) <= 1 + 1e-3):
        raise InputError(f"palette: {path} holds {colours.dtype} numbers outside [-1, 1]; {accepted}")
    return colours.astype(np.float32)


def save(colours: np.ndarray, path: Path) -> None:
    """Writes a palette, whole or not at all."""
    with files.whole(path) as file:
        np.save(file, colours)
