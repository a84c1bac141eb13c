"""COCO's average precision on masks whose overlap with the annotated ones is known."""

import builtins
import json

import numpy as np
import pytest

from crate_jax import InputError
from crate_jax.analysis.average_precision import Prediction, average_precision, read_annotations


def square(left, side=10):
    mask = np.zeros((40, 60), bool)
    mask[5 : 5 + side, left : left + side] = True
    return mask


def annotated(*lefts):
    """One square in each image."""
    objects = [
        {"image_id": number, "category_id": 7, "bbox": [left, 5, 10, 10], "segmentation": [polygon(left)]}
        for number, left in enumerate(lefts)
    ]
    images = [
        {"id": number, "height": 40, "width": 60, "file_name": f"{number}.png"}
        for number in range(len(lefts))
    ]
    return {"images": images, "annotations": objects, "categories": [{"id": 7, "name": "square"}]}


def polygon(left):
    return [left, 5, left + 10, 5, left + 10, 15, left, 15]


def test_perfect_masks_and_masks_of_a_known_overlap():
    pytest.importorskip("pycocotools")
    truth = annotated(8, 20)
    perfect = [Prediction(number, square(left), 0.9) for number, left in enumerate((8, 20))]
    everything = {"AP": 100, "AP50": 100, "AP75": 100, "AR100": 100}
    assert average_precision(perfect, truth) == {name: pytest.approx(everything) for name in ("box", "mask")}
    # Shifted by two of ten columns: IoU 80/120 = 0.67, enough for 0.50, 0.55, 0.60, 0.65 of the ten thresholds.
    shifted = [Prediction(number, square(left + 2), 0.9) for number, left in enumerate((8, 20))]
    found = average_precision(shifted, truth)
    expected = {"AP": 40, "AP50": 100, "AP75": 0, "AR100": 40}
    assert found == {name: pytest.approx(expected) for name in ("box", "mask")}


def test_scores_rank_and_misses_cost():
    pytest.importorskip("pycocotools")
    truth = annotated(8, 20)
    # One of two objects found, behind a false alarm: precision ½ up to recall ½.
    predictions = [Prediction(0, square(45), 0.9), Prediction(1, square(20), 0.5)]
    assert average_precision(predictions, truth)["mask"]["AP50"] == pytest.approx(50 * 51 / 101)
    swapped = [Prediction(0, square(45), 0.1), Prediction(1, square(20), 0.5)]
    assert average_precision(swapped, truth)["mask"]["AP50"] == pytest.approx(100 * 51 / 101)
    assert average_precision([], truth)["box"]["AP"] == 0


def test_bad_input_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"annotations: .*none.json cannot be read"):
        read_annotations(tmp_path / "none.json")
    (tmp_path / "other.json").write_text(json.dumps({"images": []}))
    with pytest.raises(
        InputError, match=r"other.json has no annotations; accepted: a file of COCO instances"
    ):
        read_annotations(tmp_path / "other.json")
    (tmp_path / "good.json").write_text(json.dumps(annotated(8)))
    truth = read_annotations(tmp_path / "good.json")
    if pytest.importorskip("pycocotools"):
        with pytest.raises(InputError, match="predictions: found image 3, which is not annotated"):
            average_precision([Prediction(3, square(8), 1.0)], truth)
        with pytest.raises(
            InputError, match="annotations: found none; accepted: one annotated object or more"
        ):
            average_precision([], {**truth, "annotations": []})
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="pycocotools is not installed; accepted: pip install pycocotools"):
        average_precision([], truth)
