"""What occurs near what: pairs of colours in images, pairs of colour words in a text."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from crate_jax import InputError


class Counts(NamedTuple):
    """How often colours occur together.

    Attributes:
      names: what the `n` colours are called.
      rgb: `[n, 3]`, sRGB from 0 to 1.
      counts: `[n, n]`, symmetric; a pair of different colours counts once in each order.
    """

    names: tuple[str, ...]
    rgb: np.ndarray
    counts: np.ndarray


def pixel_pairs(images: Sequence[np.ndarray], *, radius: float, count: int, seed: int) -> np.ndarray:
    """Pairs of different pixels of one image, drawn uniformly from all that lie at most `radius` apart.

    An image is chosen in proportion to its pixels, then a pixel and an offset uniformly; a pair that leaves the image is
    drawn again.

    Args:
      images: uint8 `[h, w, 3]`, each of two pixels or more.
      radius: the greatest Euclidean distance of two centres, in pixels, at least 1.
      count: the number of pairs.
      seed: of the draw.
    Returns:
      uint8 `[count, 2, 3]`.
    """
    rng = np.random.default_rng(seed)
    reach = np.arange(-int(radius), int(radius) + 1)
    offsets = np.stack(np.meshgrid(reach, reach, indexing="ij"), -1).reshape(-1, 2)
    lengths = (offsets**2).sum(1)
    offsets = offsets[(lengths > 0) & (lengths <= radius**2)]
    sizes = np.array([image.shape[0] * image.shape[1] for image in images], float)
    found = []
    for image, wanted in zip(images, rng.multinomial(count, sizes / sizes.sum()), strict=True):
        shape = np.array(image.shape[:2])
        while wanted:
            first = rng.integers(0, shape, (2 * wanted, 2))
            second = first + rng.choice(offsets, 2 * wanted)
            inside = ((second >= 0) & (second < shape)).all(1)
            ends = np.stack([first[inside], second[inside]], 1)[:wanted]
            found.append(image[ends[..., 0], ends[..., 1]])
            wanted -= len(ends)
    return np.concatenate(found)


def colour_counts(pairs: np.ndarray, *, grid: int, least: int) -> Counts:
    """Counts of pairs of colours, on a grid of `grid` equal steps a channel of sRGB.

    A colour stands for all pixels of its cell; its `rgb` is their mean.

    Args:
      pairs: uint8 `[m, 2, 3]`.
      grid: from 2 to 256 steps a channel.
      least: colours that are fewer than so many ends of pairs are left out, and with them their pairs.
    Raises:
      InputError: fewer than five colours are left: three dimensions hold four points at any distances.
    """
    cells = (pairs.astype(np.int64) * grid // 256) @ np.array([grid * grid, grid, 1])
    present, ends = np.unique(cells, return_inverse=True)
    ends = ends.reshape(-1, 2)
    occurrences = np.bincount(ends.ravel())
    kept = np.flatnonzero(occurrences >= least)
    if len(kept) < 5:
        raise InputError(
            f"the images hold {len(kept)} colours on a grid of {grid} steps a channel that occur {least} times or more; "
            "accepted: five or more (other images, a finer --grid, more --pairs)"
        )
    sums = [np.bincount(ends.ravel(), pairs[..., channel].ravel()) for channel in range(3)]
    rgb = np.stack(sums, 1) / occurrences[:, None] / 255
    new = np.full(len(present), -1)
    new[kept] = np.arange(len(kept))
    first, second = new[ends][(new[ends] >= 0).all(1)].T
    counts = np.bincount(first * len(kept) + second, minlength=len(kept) ** 2).reshape(len(kept), -1)
    names = tuple("#" + "".join(f"{round(255 * value):02x}" for value in color) for color in rgb[kept])
    return Counts(names, rgb[kept], (counts + counts.T).astype(float))


def word_counts(text: str, colors: dict[str, np.ndarray], *, window: int) -> Counts:
    """Counts of pairs of colour words at most `window` words apart.

    Words are runs of the letters a to z, in either case; "gray" counts as "grey".

    Args:
      text: the text.
      colors: word → its sRGB colour from 0 to 1.
      window: 1 pairs only words that follow each other.
    Returns:
      the words that occur beside some colour word.
    Raises:
      InputError: fewer than five of the words do.
    """
    index = {word: i for i, word in enumerate(colors)}
    index["gray"] = index.get("grey", -1)
    words = re.findall("[a-z]+", text.lower())
    seen = [(place, index[word]) for place, word in enumerate(words) if index.get(word, -1) >= 0]
    counts = np.zeros((len(colors), len(colors)))
    for i, (place, word) in enumerate(seen):
        for other_place, other in seen[i + 1 :]:
            if other_place - place > window:
                break
            counts[word, other] += 1
    counts += counts.T
    kept = np.flatnonzero(counts.sum(1))
    if len(kept) < 5:
        raise InputError(
            f"--text: {len(kept)} colour words occur within {window} words of another one; accepted: a text with five or "
            f"more of {', '.join(colors)}"
        )
    names = tuple(colors)
    return Counts(
        tuple(names[i] for i in kept),
        np.stack([colors[names[i]] for i in kept]),
        counts[np.ix_(kept, kept)],
    )
