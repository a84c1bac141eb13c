"""The segment command on an old run: every image is there, masks fit the stored images, precision against annotations."""

import json
import tarfile

import cv2
import numpy as np
import pytest
from conftest import ROOT

from crate_jax import InputError, segment


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    with tarfile.open(ROOT / "tests" / "fixtures" / "runs" / "vit.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "run"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, (height, width) in {"a.png": (40, 60), "b.jpg": (32, 32)}.items():
        image = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
        image[5:25, 5:30] = 250
        cv2.imwrite(str(folder / name), image)
    cv2.imwrite(str(folder / "c.png"), np.full((20, 20, 3), 7, np.uint8))
    return folder


def test_every_image_is_looked_at_and_compared(workdir, photos, tmp_path, capsys):
    pytest.importorskip("pycocotools")
    annotations = {
        "images": [
            {"id": 10 + number, "file_name": name, "height": height, "width": width}
            for number, (name, height, width) in enumerate(
                [("a.png", 40, 60), ("b.jpg", 32, 32), ("c.png", 20, 20)]
            )
        ],
        "annotations": [
            {
                "image_id": 10,
                "bbox": [5, 5, 25, 20],
                "segmentation": [[5, 5, 30, 5, 30, 25, 5, 25]],
                "category_id": 1,
            }
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(annotations))
    flags = [
        f"--workdir={workdir}",
        f"--input={photos}",
        f"--annotations={tmp_path / 'instances.json'}",
        "--stride=1",
    ]
    segment.main(["segment", *flags])
    found = json.loads((workdir / "report" / "segment.json").read_text())
    assert [each["id"] for each in found["images"]] == [10, 11, 12] and all(
        each["cuts"] for each in found["images"]
    )
    for each, (width, height) in zip(found["images"], [(60, 40), (32, 32), (20, 20)], strict=True):
        for left, top, right, bottom in each["boxes"]:
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
    precision = found["average_precision"]
    assert all(0 <= value <= 100 for kind in precision.values() for value in kind.values())
    assert cv2.imread(str(workdir / "report" / "segment" / "000-a.png")).shape == (40, 60, 3)
    assert "average precision without regard to classes" in capsys.readouterr().out


def test_bad_input_is_one_line(workdir, photos, tmp_path):
    with pytest.raises(InputError, match="no file or folder"):
        segment.main(["segment", f"--workdir={workdir}", f"--input={tmp_path / 'none'}"])
    with pytest.raises(
        InputError, match=r"--threshold: found 1.5; accepted: a number of at least 0 and below 1"
    ):
        segment.main(["segment", f"--workdir={workdir}", f"--input={photos}", "--threshold=1.5"])
    (tmp_path / "instances.json").write_text(
        json.dumps({"images": [{"id": 1, "file_name": "gone.png"}], "annotations": []})
    )
    flags = [f"--input={photos}", f"--annotations={tmp_path / 'instances.json'}"]
    with pytest.raises(
        InputError, match=r"--input: .*gone.png is annotated and not there \(1 of 1 are missing\)"
    ):
        segment.main(["segment", f"--workdir={workdir}", *flags])
