"""The input pipeline: images a second of a core, and how they grow with threads and with processes.

    python benchmarks/input.py --photographs=FOLDER --cifar=FOLDER [--threads=1,2 --seconds=5 --output=FILE.json]

FOLDER of photographs: JPEG files, no class folders needed; they are decoded, cropped (Inception) to 224 px, flipped and put
into batches of 64. FOLDER of CIFAR: train/CLASS/* and test/CLASS/*; read as files, from array_record and from .npz, padded,
cropped, flipped, in batches of 512. `plain cv2` decodes, crops and resizes the same photographs in a bare loop, from memory:
by averages over areas, OpenCV's own way without aliasing, and with torchvision's filter, which is what the pipeline does.
`wall` is images a second of time, `core` images a second of processor time, which other programs disturb less. Processes
are timed for comparison: each has a pipeline of its own with one thread; no batch leaves it.
"""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from absl import app, flags
from PIL import Image

from crate_jax.data import Augment, Source, load, prepare, train, transforms
from crate_jax.data.dataset import Part

PHOTOGRAPHS = flags.DEFINE_string("photographs", None, "A folder of JPEG files.")
CIFAR = flags.DEFINE_string("cifar", None, "CIFAR-10 as class folders of images.")
THREADS = flags.DEFINE_list("threads", ["1", "2"], "Numbers of threads, and of processes.")
SECONDS = flags.DEFINE_float("seconds", 5.0, "Length of each measurement.")
OUTPUT = flags.DEFINE_string("output", None, "A JSON file for the figures.")

CROP = Augment(size=224, channels=3, crop_scale=(0.08, 1.0), flip=True)
SHIFT = Augment(size=32, channels=3, crop_padding=4, flip=True)


def rate(images: Iterator[int], seconds: float) -> dict[str, float]:
    """Images a second of wall and of processor time; `images` yields how many were just made."""
    next(images)
    wall, core, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        count += next(images)
    return {
        "wall": count / (time.perf_counter() - wall),
        "core": count / (time.process_time() - core),
    }


def pipeline(source: Source, augment: Augment, batch_size: int, threads: int) -> Iterator[int]:
    batches = train(source, batch_size=batch_size, seed=0, augment=augment, num_threads=threads).iterate(0)
    return (len(batch["label"]) for batch in batches)


def areas(part: np.ndarray) -> np.ndarray:
    """OpenCV's own resizing without aliasing: averages over areas."""
    return cv2.resize(part, (224, 224), interpolation=cv2.INTER_AREA)


def triangles(part: np.ndarray) -> np.ndarray:
    """torchvision's filter, which OpenCV does not have."""
    return np.asarray(Image.fromarray(part).resize((224, 224), Image.Resampling.BILINEAR))


def plain(files: list[bytes], resize: Callable[[np.ndarray], np.ndarray]) -> Iterator[int]:
    """What any pipeline around OpenCV has to do."""
    rng = np.random.default_rng(0)
    while True:
        for data in files:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            top, left, height, width = transforms._crop_box(rng, *image.shape[:2], (0.08, 1), (3 / 4, 4 / 3))
            resize(image[top : top + height, left : left + width])
        yield len(files)


def in_process(source: Source, augment: Augment, batch_size: int, seconds: float) -> dict[str, float]:
    return rate(pipeline(source, augment, batch_size, 1), seconds)


def measure(name: str, source: Source, augment: Augment, batch_size: int) -> dict[str, dict[str, float]]:
    seconds, figures = SECONDS.value, {}
    for number in map(int, THREADS.value):
        figures[f"{name}, {number} thread(s)"] = rate(pipeline(source, augment, batch_size, number), seconds)
        with ProcessPoolExecutor(number, multiprocessing.get_context("spawn")) as pool:
            work = source, augment, batch_size, seconds
            parts = [pool.submit(in_process, *work) for _ in range(number)]
            parts = [part.result() for part in parts]
        figures[f"{name}, {number} process(es)"] = {
            "wall": sum(part["wall"] for part in parts),
            "core": float(np.mean([part["core"] for part in parts])),
        }
    return figures


def cifar(folder: Path, scratch: Path) -> Iterator[tuple[str, Source]]:
    name = f"folder:{folder}"
    yield "CIFAR, files", load(name, "train")
    prepare.prepare(name, scratch / "records")
    yield "CIFAR, array_record", load(f"array_record:{scratch / 'records'}", "train")
    arrays = {}
    for split in ("train", "test"):
        source = load(name, split, image_size=32, channels=3)
        examples = [source[i] for i in range(len(source))]
        arrays[f"x_{split}"] = np.stack([example["image"] for example in examples])
        arrays[f"y_{split}"] = np.stack([example["label"] for example in examples])
    np.savez(scratch / "cifar.npz", **arrays)
    yield "CIFAR, npz", load(f"npz:{scratch / 'cifar.npz'}", "train")


def show(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    for name, figures in found.items():
        print(f"{name:36} wall {figures['wall']:9,.0f}  core {figures['core']:9,.0f}", flush=True)
    return found


def main(argv: list[str]) -> None:
    del argv
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if PHOTOGRAPHS.value:
            files = sorted(Path(PHOTOGRAPHS.value).expanduser().glob("*.[jJ]*"))
            for i, file in enumerate(files):  # two classes, which the source asks for
                link = Path(scratch) / "photographs" / "ab"[i % 2] / file.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.resolve())
            contents = [file.read_bytes() for file in files]
            for name, resize in (("areas", areas), ("torchvision's filter", triangles)):
                figures |= show({f"plain cv2, {name}": rate(plain(contents, resize), SECONDS.value)})
            # Many times over: Grain's shuffle looks for places in a range that is far larger than a few hundred images.
            source = load(f"folder:{scratch}/photographs", "train+test")
            source = Part(source, np.tile(np.arange(len(source)), 100))
            figures |= show(measure("photographs", source, CROP, 64))
        if CIFAR.value:
            for name, source in cifar(Path(CIFAR.value).expanduser(), Path(scratch)):
                figures |= show(measure(name, source, SHIFT, 512))
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
