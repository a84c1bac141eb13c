"""Objects that a model's token features tell apart, without labels: MaskCut, and principal components as colours."""

from collections.abc import Callable
from typing import Any

import numpy as np

from crate_jax import models
from crate_jax.analysis import overlays
from crate_jax.analysis.attention import compares_tokens
from crate_jax.analysis.maskcut import KEPT, Cut, maskcut
from crate_jax.analysis.sheets import sheet
from crate_jax.analysis.tokens import JointPCA, joint_pca, token_reader
from crate_jax.reports.base import Figure, Gallery, SectionResult, Table, TrainedRun
from crate_jax.reports.looking import fine_maps, some_images, stride_for

IMAGES = 8
THRESHOLD, OBJECTS = 0.15, 3
TEXT = (
    "What the model's features tell apart, without labels of pixels. The features are {kind}{fine}. MaskCut joins "
    "tokens whose features have a cosine above {threshold}, cuts this graph in two where the normalised cut is "
    "smallest, takes the connected part at the peak of the eigenvector for an object, and repeats without it, at "
    "most {objects} times; a later cut is refused if it overlaps the one before or is smaller than 1 % of the "
    "image. The colours are the first three principal components of all images' tokens together, {explained:.0f} % "
    "of their variance, so that equal colours mean like features; “foreground” has those of the foreground alone, the "
    "smaller side of the first component. Small models on small images need not find objects: this shows what they "
    "do find."
)


def make(trained: TrainedRun) -> SectionResult | None:
    """Masks, boxes and colours of a few images; nothing for a model of something else."""
    config = trained.run.config.model
    if not isinstance(config, models.ImageConfig) or config.num_tokens < 4:
        return None
    images, names, pictures = some_images(trained, IMAGES)
    kind = "keys" if compares_tokens(trained.run.model) else "tokens"
    stride = stride_for(config)
    features = token_maps(trained, kind, stride)(images)
    grid, flat = features.shape[1:3], features.reshape(len(images), -1, features.shape[-1])
    cuts = [maskcut(each, grid, threshold=THRESHOLD, objects=OBJECTS) for each in flat]
    colours = {"all tokens": joint_pca(flat), "foreground": joint_pca(flat, foreground=True)}
    text = TEXT.format(
        kind="the last layer's tokens"
        if kind == "tokens"
        else "what the last layer's attention compares, all heads together",
        fine=f", on a grid of {grid[0]}×{grid[1]}"
        + (f" from images shifted by {stride} px" if stride < config.patch_size else ""),
        threshold=THRESHOLD,
        objects=OBJECTS,
        explained=100 * colours["all tokens"].explained.sum(),
    )
    table = Table(
        f"objects of {len(images):,} {trained.examples_are}",
        [
            "image",
            "class",
            "objects",
            "share of the image (%)",
            "eigenvalue of the first cut",
            "search ended",
        ],
        [_row(number, name, found) for number, (name, found) in enumerate(zip(names, cuts, strict=True), 1)],
    )
    values: dict[str, Any] = {
        "features": kind, "grid": list(grid), "threshold": THRESHOLD,
        "images": [[_as_json(cut) for cut in found] for found in cuts],
    }  # fmt: skip
    return SectionResult(
        "Segmentation", text, values, [table], galleries=[_gallery(pictures, names, cuts, colours, grid)]
    )


def token_maps(trained: TrainedRun, kind: str, stride: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function from images to the features of the last layer's patches `[m, rows, columns, f]`."""
    model = trained.run.model
    patch_size, reader = trained.run.config.model.patch_size, token_reader(kind)

    def read(params, inputs):
        features = model.apply(params, inputs, trace=reader)[1][-1]
        rows, columns = (side // patch_size for side in inputs.shape[1:3])
        maps = features[:, -rows * columns :].reshape(len(inputs), rows, columns, -1)
        return maps.transpose(0, 3, 1, 2)

    maps = fine_maps(trained, read, stride)
    return lambda images: maps(images).transpose(0, 2, 3, 1)


def _row(number: int, name: str, cuts: list[Cut]) -> list[object]:
    kept = [cut for cut in cuts if cut.verdict == KEPT]
    if not cuts:
        return [number, name, 0, "–", "–", "nothing to cut: all tokens are alike, or none"]
    share = 100 * sum(cut.mask.mean() for cut in kept)
    ended = cuts[-1].verdict if cuts[-1].verdict != KEPT else f"after {len(cuts)}"
    return [number, name, len(kept), f"{share:.1f}", f"{cuts[0].eigenvalue:.3f}", ended]


def _as_json(cut: Cut) -> dict[str, Any]:
    return {
        "verdict": cut.verdict, "box": None if cut.box is None else [int(x) for x in cut.box],
        "share": float(cut.mask.mean()), "eigenvalue": cut.eigenvalue,
    }  # fmt: skip


def _gallery(
    pictures: np.ndarray, names: list[str], cuts: list[list[Cut]], colours: dict[str, JointPCA], grid: tuple
) -> Gallery:
    figures = []
    for number, (picture, name, found) in enumerate(zip(pictures, names, cuts, strict=True), 1):
        large = overlays.enlarged(picture, 168)
        kept = [cut.mask for cut in found if cut.verdict == KEPT]
        shape = large.shape[:2]
        tiles = [
            ("image", overlays.outlined(large, [])),
            ("objects", overlays.outlined(large, kept)),
            *(
                (label, overlays.painted(pca.colours[number - 1].reshape(*grid, 3), shape))
                for label, pca in colours.items()
            ),
        ]
        objects = {0: "no object", 1: "one object"}.get(len(kept), f"{len(kept)} objects")
        alt = f"Image {number} ({name}): the image, {objects} found by MaskCut, principal components as colours."
        figures.append(Figure(f"segmentation-{number}.png", sheet(tiles, columns=2), alt))
    numbers = [f"{number}: {name}" for number, name in enumerate(names, 1)]
    return Gallery("Objects and components", {"image": numbers}, figures)
