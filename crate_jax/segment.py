"""Find objects in a folder of images by MaskCut on a model's features, and compare them with annotations if there are any.

    python -m crate_jax.segment --workdir=runs/crate --input=photos
    python -m crate_jax.segment --workdir=runs/crate --input=val2017 --annotations=instances.json --stride=4

Each image is stretched to the size that the model sees (--config.data.image_size: another one, with positions interpolated);
masks and boxes are those of the image as it is stored. Writes report/segment.json and, of the first images, overlays to
report/segment/. With --annotations, a file of COCO instances, exactly its images are looked at.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from crate_jax import InputError
from crate_jax.analysis import overlays
from crate_jax.analysis.attention import compares_tokens
from crate_jax.analysis.average_precision import Prediction, average_precision, read_annotations
from crate_jax.analysis.maskcut import KEPT, bounding_box, maskcut
from crate_jax.data import folders, transforms
from crate_jax.models import ImageConfig
from crate_jax.reports.base import TrainedRun
from crate_jax.reports.segmentation import token_maps
from crate_jax.runs import cli
from crate_jax.runs.console import console, progress, table, wide_table
from crate_jax.runs.metrics import write_atomically
from crate_jax.settings import REQUIRED, setting
from crate_jax.training.opening import open_run

# Images of which an overlay is written.
DRAWN = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(cli.WorkdirFlags):
    """Those of a run, and what to look at."""

    input: Path = setting(REQUIRED, "A folder of images, with those in its folders.")
    annotations: Path | None = setting(None, "A file of COCO instances; left out: nothing is compared.")
    objects: int = setting(3, "Objects per image at most.", least=1)
    threshold: float = setting(0.15, "Cosine above which two tokens are alike.", least=0, below=1)
    stride: int | None = setting(
        None, "Pixels between the centres of features; left out: the patch size.", least=1
    )


def main(argv: list[str]) -> None:
    flags, config, path, overrides = cli.parse_workdir(argv, Flags)
    images = _images(flags)
    opened = open_run(path, flags.checkpoint, config=config, overrides=overrides)
    model = opened.run.config.model
    if not isinstance(model, ImageConfig):
        raise InputError(f"--workdir: found a run of {model.family}; accepted: a model of image patches")
    stride = model.patch_size if flags.stride is None else flags.stride
    with jax.set_mesh(opened.run.mesh):
        found = _segment(TrainedRun(*opened, []), images, flags, stride)
    values: dict[str, Any] = {
        "threshold": flags.threshold,
        "stride_px": stride,
        "images": [{key: value for key, value in each.items() if key != "masks"} for each in found],
    }
    objects = [len(each["masks"]) for each in found]
    lines = {"images": len(found), "objects": sum(objects), "images without an object": objects.count(0)}
    if flags.annotations is not None:
        values["average_precision"] = _compare(read_annotations(flags.annotations), found)
    folder = path / "report"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / "segment.json", json.dumps(values, indent=1) + "\n")
    table(
        f"{path} at step {opened.step}",
        {**lines, "numbers": folder / "segment.json", "overlays": folder / "segment"},
    )


def _images(flags: Flags) -> list[tuple[Any, Path]]:
    """(id, file) of the images to look at.

    Raises:
      InputError: no images, or one that is annotated and not there.
    """
    if flags.annotations is None:
        return [(number, Path(name)) for number, name in enumerate(folders.unlabelled(flags.input).paths)]
    annotated = read_annotations(flags.annotations)["images"]
    chosen = [(each["id"], flags.input / each["file_name"]) for each in annotated]
    missing = [file for _, file in chosen if not file.is_file()]
    if missing:
        raise InputError(
            f"--input: {missing[0]} is annotated and not there ({len(missing)} of {len(chosen)} are missing)"
        )
    return chosen


def _segment(
    trained: TrainedRun, images: list[tuple[Any, Path]], flags: Flags, stride: int
) -> list[dict[str, Any]]:
    """Masks in pixels, boxes, scores and verdicts of every image, none left out."""
    config = trained.run.config.model
    kind = "keys" if compares_tokens(trained.run.model) else "tokens"
    look = token_maps(trained, kind, stride)
    drawn = trained.run.workdir / "report" / "segment"
    drawn.mkdir(parents=True, exist_ok=True)
    found = []
    with progress("segmenting", len(images)) as advance:
        for number, (image_id, file) in enumerate(images):
            picture = transforms.decode(file.read_bytes(), str(file), channels=config.channels)
            seen = transforms.fit(
                picture, size=config.image_shape[:2], channels=config.channels, stretch=True
            )
            features = look(seen[None])[0]
            grid = features.shape[:2]
            cuts = maskcut(
                features.reshape(grid[0] * grid[1], -1),
                grid,
                threshold=flags.threshold,
                objects=flags.objects,
            )
            kept = [cut for cut in cuts if cut.verdict == KEPT]
            shape = picture.shape[1::-1]
            masks = [
                cv2.resize(cut.mask.astype(np.uint8), shape, interpolation=cv2.INTER_NEAREST) > 0
                for cut in kept
            ]
            boxes = [[int(side) for side in box] for mask in masks if (box := bounding_box(mask)) is not None]
            # Later cuts are less sure: their rank is their score.
            scores = [1 / (rank + 1) for rank in range(len(masks))]
            verdicts = [cut.verdict for cut in cuts] or ["nothing to cut"]
            about = {"id": image_id, "file": file.name, "boxes": boxes, "scores": scores, "cuts": verdicts}
            found.append({**about, "masks": masks})
            if number < DRAWN:
                overlay = overlays.outlined(picture, masks)[..., ::-1]
                write_atomically(
                    drawn / f"{number:03d}-{file.stem}.png", cv2.imencode(".png", overlay)[1].tobytes()
                )
            advance(1)
    return found


def _compare(annotations: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    predictions = [
        Prediction(each["id"], mask, score)
        for each in found
        for mask, score in zip(each["masks"], each["scores"], strict=True)
    ]
    precision = average_precision(predictions, annotations)
    names = list(precision["box"])
    rows = [[kind, *(f"{values[name]:.2f}" for name in names)] for kind, values in precision.items()]
    wide_table("average precision without regard to classes (%)", ["", *names], rows)
    console.print(
        f"{len(predictions)} objects of {len(annotations['annotations'])} annotated ones", markup=False
    )
    return precision


if __name__ == "__main__":
    cli.run(main, Flags)
