"""Colours placed by what they occur near, beside where people see them: Huh et al. 2024, section 4.3 and appendix D."""

import dataclasses
import zipfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib

matplotlib.use("Agg")  # No display on a server; must be chosen before pyplot is imported.
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import XKCD_COLORS, to_rgb
from scipy.spatial.distance import pdist, squareform

from crate_jax import InputError
from crate_jax.alignment import pmi_kernel
from crate_jax.analysis import geometry
from crate_jax.analysis.cooccurrence import Counts
from crate_jax.analysis.figures import as_png
from crate_jax.data import folders, transforms

# Colour words: the eleven basic terms of English (Berlin and Kay 1969) and nine more. What colour a word means is the answer
# most given in xkcd's survey of 2010 (public domain), which comes with matplotlib.
WORDS = (
    *("black", "white", "red", "green", "yellow", "blue", "brown", "orange", "pink", "purple", "grey"),
    *("turquoise", "lavender", "maroon", "magenta", "olive", "teal", "tan", "peach", "violet"),
)
HEADERS = (
    "colours placed by",
    "n",
    "ρ with ΔE",
    "p",
    "ρ with RGB",
    "stress-1",
    "R² to CIELAB",
    "R² mirrored",
    "p",
)


@dataclasses.dataclass(frozen=True)
class Colors:
    """Colours and how alike a representation finds them.

    Attributes:
      name: of the representation.
      names: of the `n` colours.
      rgb: `[n, 3]`, sRGB from 0 to 1.
      kernel: `[n, n]`, symmetric: larger for what is more alike.
    """

    name: str
    names: tuple[str, ...]
    rgb: np.ndarray
    kernel: np.ndarray


@dataclasses.dataclass(frozen=True)
class Measured:
    """How well a representation's colours lie where people see them.

    Attributes:
      colors: the representation.
      correlation: Mantel's test of max K - K against the distance in CIELAB (CIE 1976 ΔE*ab).
      rgb_correlation: the same correlation with the distance in sRGB, to tell perception from the encoding.
      stress: of the three-dimensional MDS.
      lab: `[n, 3]`, the colours in CIELAB.
      placed: the MDS moved onto CIELAB, as it came out and mirrored.
      chirality: the better one's R² against renamed colours.
    """

    colors: Colors
    correlation: geometry.PermutationTest
    rgb_correlation: float
    stress: float
    lab: np.ndarray
    placed: tuple[geometry.Alignment, geometry.Alignment]
    chirality: geometry.PermutationTest

    def cells(self) -> list:
        """What stands under HEADERS."""
        return [
            self.colors.name,
            len(self.colors.names),
            f"{self.correlation.value:.3f}",
            f"{self.correlation.p:.3g}",
            f"{self.rgb_correlation:.3f}",
            f"{self.stress:.3f}",
            *(f"{each.r2:.3f}" for each in self.placed),
            f"{self.chirality.p:.3g}",
        ]

    def numbers(self) -> dict:
        """The same as JSON holds it."""
        return {
            "representation": self.colors.name,
            "n": len(self.colors.names),
            "colors": list(self.colors.names),
            "correlation": self.correlation._asdict(),
            "rgb_correlation": self.rgb_correlation,
            "stress": self.stress,
            "r2": [each.r2 for each in self.placed],
            "chirality": self.chirality._asdict(),
        }


def read_images(path: Path | None, *, limit: int, seed: int) -> list[np.ndarray]:
    """The images of a folder and of those in it, uint8 `[h, w, 3]`; scikit-learn's two photographs without one.

    Args:
      path: the folder.
      limit: of more images so many are drawn.
      seed: of the draw.
    Raises:
      InputError: nothing there, no images, an unreadable one, or one of a single pixel.
    """
    if path is None:
        from sklearn.datasets import load_sample_images  # Imports a good part of scikit-learn.

        return load_sample_images().images
    if not path.is_dir():
        raise InputError(f"--input: no folder {path}; accepted: a folder of images")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in folders.IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"--input: {path} holds no images; accepted: {', '.join(folders.IMAGE_SUFFIXES)}")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(files))[:limit])
    images = [transforms.decode(files[i].read_bytes(), str(files[i]), channels=3) for i in chosen]
    for i, image in zip(chosen, images, strict=True):
        if image.shape[0] * image.shape[1] < 2:
            raise InputError(f"--input: {files[i]} has one pixel; accepted: images of two or more")
    return images


def word_colors() -> dict[str, np.ndarray]:
    """Colour word → sRGB from 0 to 1."""
    return {word: np.array(to_rgb(XKCD_COLORS[f"xkcd:{word}"])) for word in WORDS}


def read_embedding(path: Path) -> Colors:
    """The colour words of an embedding file; alike is what has a high cosine.

    Args:
      path: lines `word v1 v2 …` as GloVe and word2vec write them, or .npz with `words` `[n]` and `vectors` `[n, d]`.
    Raises:
      InputError: no such file, one in another form, or one with fewer than five of the words.
    """
    accepted = "accepted: lines of a word and its numbers, or .npz with words [n] and vectors [n, d]"
    if not path.is_file():
        raise InputError(f"--embedding: no file {path}; {accepted}")
    colors = word_colors()
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                rows = dict(
                    zip(archive["words"].tolist(), np.asarray(archive["vectors"], float), strict=True)
                )
            vectors = {word: rows[word] for word in colors if word in rows}
        else:
            vectors = {}
            with path.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    word, _, rest = line.partition(" ")
                    if word in colors:
                        vectors[word] = np.array(rest.split(), float)
        matrix = np.array(list(vectors.values()))
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"--embedding: {path} cannot be read ({error}); {accepted}") from None
    if len(vectors) < 5:
        raise InputError(
            f"--embedding: {path} holds {len(vectors)} of the colour words; accepted: five or more of {', '.join(WORDS)}"
        )
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not np.isfinite(matrix).all() or not lengths.all():
        raise InputError(f"--embedding: {path} holds vectors that are zero or not finite; accepted: others")
    unit = matrix / lengths
    rgb = np.stack([colors[word] for word in vectors])
    return Colors(f"embedding {path.name}", tuple(vectors), rgb, unit @ unit.T)


def from_counts(name: str, counts: Counts, *, prior: float) -> Colors:
    """Colours whose likeness is the PMI of their counts.

    Raises:
      InputError: without a prior, a pair of colours that never occurs.
    """
    if prior == 0 and not counts.counts.all():
        missing = int(np.sum(counts.counts == 0)) / counts.counts.size
        raise InputError(
            f"--prior: found 0, and {100 * missing:.0f} % of the pairs of colours of {name} never occur (their PMI is -∞); "
            "accepted: above 0, or a coarser --grid"
        )
    kernel = np.asarray(pmi_kernel(counts.counts, prior), float)
    return Colors(name, counts.names, counts.rgb, (kernel + kernel.T) / 2)


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB from 0 to 1, `[n, 3]`, in CIELAB under D65: L* from 0 to 100, a* and b*."""
    return cv2.cvtColor(np.float32(rgb)[None], cv2.COLOR_RGB2LAB)[0].astype(float)


def measure(colors: Colors, *, fits: int, permutations: int, seed: int) -> Measured:
    """Compare a representation of colours with CIELAB.

    Args:
      colors: the representation.
      fits: random starts of the MDS.
      permutations: of either test.
      seed: of both.
    """
    lab = to_lab(colors.rgb)
    seen, encoded = squareform(pdist(lab)), squareform(pdist(colors.rgb))
    distances = colors.kernel.max() - colors.kernel
    np.fill_diagonal(distances, 0)
    points, stress = geometry.metric_mds(distances, fits=fits, seed=seed)
    return Measured(
        colors,
        geometry.mantel(distances, seen, permutations=permutations, seed=seed),
        geometry.rank_correlation(distances, encoded),
        stress,
        lab,
        (geometry.align(points, lab), geometry.align(points, lab, mirrored=True)),
        geometry.chirality_test(points, lab, permutations=permutations, seed=seed),
    )


def picture(measured: Sequence[Measured]) -> bytes:
    """A PNG: a row for each representation, CIELAB, the MDS in the better handedness, and its mirror image."""
    figure = plt.figure(figsize=(12, 4.2 * len(measured)))
    for row, each in enumerate(measured):
        placed = sorted(each.placed, key=lambda alignment: -alignment.r2)
        panels = [(each.lab, f"CIELAB: {len(each.lab)} colours")]
        panels += [
            (alignment.points, f"{each.colors.name}{mirror}, R² = {alignment.r2:.2f}")
            for alignment, mirror in zip(placed, ("", ", mirrored"), strict=True)
        ]
        for column, (points, title) in enumerate(panels):
            axis = figure.add_subplot(len(measured), 3, 3 * row + column + 1, projection="3d")
            axis.scatter(
                *points[:, [1, 2, 0]].T, c=each.colors.rgb, s=60, edgecolors="#55555555", depthshade=False
            )
            axis.set(xlabel="a*", ylabel="b*", zlabel="L*")
            axis.set_box_aspect(None, zoom=0.9)  # Leaves room for the label of the upright axis.
            axis.tick_params(labelsize=6)
            axis.set_title(title, fontsize=10)
    figure.tight_layout()
    return as_png(figure)
