"""Average precision of masks and boxes against annotations, as COCO defines it, without regard to classes."""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crate_jax import InputError

# Our name → the library's.
KINDS = {"box": "bbox", "mask": "segm"}
# Name → its place among the library's twelve statistics.
STATISTICS = {"AP": 0, "AP50": 1, "AP75": 2, "AR100": 8}


class Prediction(NamedTuple):
    """An object that was found: the image's `id` in the annotations, its mask, bool `[h, w]` in pixels, and a score by which
    predictions are ranked.
    """

    image_id: int
    mask: np.ndarray
    score: float


def read_annotations(path: Path) -> dict[str, Any]:
    """The annotations of a file in COCO's format for instances.

    Raises:
      InputError: no such file, or one of another format.
    """
    accepted = (
        "accepted: a file of COCO instances, with images, annotations (bbox, segmentation) and categories"
    )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"annotations: {path} cannot be read ({error}); {accepted}") from None
    missing = [
        name for name in ("images", "annotations") if not isinstance(content, dict) or name not in content
    ]
    if missing:
        raise InputError(f"annotations: {path} has no {' and no '.join(missing)}; {accepted}")
    return content


def average_precision(
    predictions: Sequence[Prediction], annotations: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """How well predicted masks and boxes agree with annotated ones: area under the curve of precision over recall.

    Args:
      predictions: all objects found in all annotated images; 100 per image count.
      annotations: content of a file of COCO instances; all categories are taken for one.
    Returns:
      {"box" and "mask": {"AP", "AP50", "AP75", "AR100"}} in percent: AP is the mean over thresholds of the intersection
      over union from 0.50 to 0.95.
    Raises:
      InputError: pycocotools is not installed, nothing is annotated, or a prediction is of an image that is not annotated.
    """
    try:
        from pycocotools import mask as rle
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise InputError(
            "annotations: pycocotools is not installed; accepted: pip install pycocotools"
        ) from None
    known = {image["id"] for image in annotations["images"]}
    unknown = sorted({each.image_id for each in predictions} - known)
    if unknown:
        raise InputError(
            f"predictions: found image {unknown[0]}, which is not annotated; accepted: ids of the images there"
        )
    if not annotations["annotations"]:
        raise InputError("annotations: found none; accepted: one annotated object or more")
    found = []
    for each in predictions:
        encoded = rle.encode(np.asfortranarray(each.mask.astype(np.uint8)))
        box = rle.toBbox(encoded).tolist()
        about = {"image_id": each.image_id, "category_id": 1, "score": each.score}
        found.append({**about, "segmentation": encoded, "bbox": box})
    if not found:
        return {name: dict.fromkeys(STATISTICS, 0.0) for name in KINDS}
    out = {}
    with contextlib.redirect_stdout(io.StringIO()):  # The library prints what it does.
        truth = COCO()
        truth.dataset = _complete(annotations)
        truth.createIndex()
        for name, kind in KINDS.items():
            evaluation = COCOeval(truth, truth.loadRes([dict(each) for each in found]), kind)
            evaluation.params.useCats = 0
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            out[name] = {key: 100 * float(evaluation.stats[place]) for key, place in STATISTICS.items()}
    return out


def _complete(annotations: dict[str, Any]) -> dict[str, Any]:
    """The annotations with what the library wants and a file may leave out."""
    annotated = [
        {"id": number, "iscrowd": 0, "area": each["bbox"][2] * each["bbox"][3], **each, "category_id": 1}
        for number, each in enumerate(annotations["annotations"], 1)
    ]
    return {"info": {}, "categories": [{"id": 1}], "images": annotations["images"], "annotations": annotated}
