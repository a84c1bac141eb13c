"""Writing small images decoded, as arrays in a .npz file: of a tiny JPEG decoding is most of the work."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from crate_jax import InputError
from crate_jax.data import files, transforms
from crate_jax.data.dataset import TEST_SPLITS, Source
from crate_jax.data.prepare import open_images
from crate_jax.data.shards import Progress, silent


def write(
    name: str,
    output: Path,
    *,
    data_dir: str | None = None,
    stop_at_unreadable: bool = False,
    progress: Progress = silent,
) -> dict[str, tuple[int, list[str]]]:
    """Write the images of a dataset, all of one size, to a file that `npz:PATH` reads.

    Order, labels and class names stay, so training on the file is training on the dataset: the same batches, bit for bit.
    All images are in memory at once, `n·h·w·c` bytes, here and wherever the file is read.

    Args:
        name: a dataset, see `sources`.
        output: the file, replaced if it is there.
        data_dir: where TensorFlow datasets are kept.
        stop_at_unreadable: stop at the first image that cannot be decoded, rather than leave it out.
        progress: shows it, such as `runs.console.progress`.

    Returns:
        images written and a line for each that was left out, of "train" and of "test".

    Raises:
        InputError: the dataset cannot be used, its images differ in size, or one is unreadable (if that is to stop).
    """
    dataset = open_images(name, data_dir=data_dir)
    own = {"train": "train", "test": next(split for split in TEST_SPLITS if split in dataset.splits)}
    read, arrays, done = {}, {"classes": np.array(dataset.classes)}, {}
    with progress("decoding", sum(dataset.splits[split] for split in own.values())) as advance:
        for split in own:
            read[split], labels, unreadable = _decode(dataset.load(own[split]), advance)
            if unreadable and (stop_at_unreadable or not read[split]):
                raise InputError(unreadable[0])
            arrays[f"y_{split}"], done[split] = np.array(labels, np.int32), (len(labels), unreadable)
    shapes = sorted({image.shape for images in read.values() for image in images})
    if len(sizes := sorted({shape[:2] for shape in shapes})) > 1:
        found = " and ".join(f"{height}×{width}" for height, width in (sizes[0], sizes[-1]))
        raise InputError(
            f"--output: {output.name} takes images of one size; found {found} pixels in {name}; accepted: a folder, for "
            "records of images of any size"
        )
    for split, images in read.items():  # A grey one among others gets their channels.
        arrays[f"x_{split}"] = np.stack([np.broadcast_to(image, shapes[-1]) for image in images])
    output.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(output) as file:
        np.savez(file, **arrays)
    return done


def _decode(source: Source, advance: Callable[[int], None]) -> tuple[list[np.ndarray], list[int], list[str]]:
    """Images and labels of a split, and a line for each image that cannot be read; grey images have one channel."""
    images, labels, unreadable = [], [], []
    for i in range(len(source)):
        advance(1)
        try:
            example = source[i]
            image = example["image"]
            images.append(transforms.decode(*image) if isinstance(image, transforms.Encoded) else image)
        except InputError as error:
            unreadable.append(str(error))
            continue
        labels.append(int(example["label"]))
    return images, labels, unreadable
