"""Writing a dataset as array_record, in the form of TensorFlow datasets, so that Grain and TFDS read it too.

A shard gets its name when it is complete and on disk, see `shards`, and ``dataset_info.json``, without which the folder is
not read, is written last.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from crate_jax import InputError
from crate_jax.data import files, sources, transforms
from crate_jax.data.dataset import LabelledImages, Source, notes_of, spread
from crate_jax.data.shards import Progress, Shard, encoded, silent, write_missing

PLAN, REPORT, FINISHED = "prepare.json", "prepared.json", "dataset_info.json"
_NAME = "images"  # The dataset's name in the files' names.
# At most: reading a record takes time that grows with their number in its file, 11 µs at 5,000, 73 µs at 50,000.
_SHARD_RECORDS = 4096
# ImageNet-1K has so many images; 1,000 classes with such names are taken for it.
_IMAGENET = {"train": 1_281_167, "val": 50_000, "test": 50_000, "validation": 50_000}


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of a split: images found, images written, shards, and a line for each unreadable file."""

    found: int
    written: int
    shards: int
    unreadable: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What lies in a prepared folder: class names, counts of each split, and what looks wrong."""

    class_names: tuple[str, ...]
    splits: dict[str, Counts]
    warnings: tuple[str, ...]


def prepare(
    name: str,
    output: Path,
    *,
    data_dir: str | None = None,
    stop_at_unreadable: bool = False,
    num_processes: int | None = None,
    shard_bytes: int = 2**28,
    progress: Progress = silent,
) -> Prepared:
    """Write all splits of a dataset to ``output``; a finished one is only read again.

    Every image is decoded once to see that it can be, and stored as it is: no pixel changes. Each shard's records are
    counted after it is written.

    Args:
        name: a dataset, see `sources`.
        output: a folder, made if it is not there.
        data_dir: where TensorFlow datasets are kept.
        stop_at_unreadable: stop at the first image that cannot be decoded, rather than leave it out.
        num_processes: how many write at once; None takes one a core.
        shard_bytes: size of a shard, about.
        progress: shows it, such as `runs.console.progress`.

    Returns:
        what was written.

    Raises:
        InputError: the dataset or ``output`` cannot be used, an image is unreadable (if that is to stop), counts differ.
    """
    dataset = open_images(name, data_dir=data_dir, exclude=str(output))
    splits = {split: dataset.load(split) for split in dataset.splits}
    output.mkdir(parents=True, exist_ok=True)
    with _lock(output):
        shards = _plan(name, splits, output, dataset.classes, shard_bytes)
        if not (output / FINISHED).is_file():
            write_missing(
                shards,
                splits,
                stop_at_unreadable=stop_at_unreadable,
                num_processes=num_processes,
                progress=progress,
            )
            _finish(output, shards, splits, dataset.classes)
    report = json.loads((output / REPORT).read_text(encoding="utf-8"))
    counts = {
        split: Counts(**{**values, "unreadable": tuple(values["unreadable"])})
        for split, values in report["splits"].items()
    }
    return Prepared(dataset.classes, counts, (*notes_of(dataset), *_warnings(dataset.classes, counts)))


def open_images(name: str, *, data_dir: str | None = None, exclude: str | None = None) -> LabelledImages:
    """A dataset whose images can be stored elsewhere; the arguments are those of `sources.open_dataset`.

    Raises:
        InputError: no such dataset, or one of something else.
    """
    dataset = sources.open_dataset(name, data_dir=data_dir, exclude=exclude)
    if not isinstance(dataset, LabelledImages):
        kind = dataset.info(name).kind
        raise InputError(f"--input: {name} is {kind}, read as it lies; accepted: labelled images")
    if dataset.white != 255:  # What is stored has the white 255; the same values would be nearly black.
        raise InputError(f"--input: white is {dataset.white} in {name}; accepted: images whose white is 255")
    return dataset


@contextlib.contextmanager
def _lock(output: Path) -> Iterator[None]:
    """One preparation at a time; the lock goes with the process that holds it, however that ends."""
    import fcntl  # not on Windows

    with open(output / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"--output: another preparation is writing to {output}") from None
        yield


def _plan(
    name: str, splits: dict[str, Source], output: Path, class_names: tuple[str, ...], shard_bytes: int
) -> list[Shard]:
    """The shards; written down before the first one, so that another dataset cannot be mixed in."""
    path = output / PLAN
    plan = {
        "dataset": name,
        "classes": list(class_names),
        "splits": {split: len(source) for split, source in splits.items()},
        "labels": {split: _digest(source) for split, source in splits.items()},
    }
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        shards = before.pop("shards")
        if before != plan:
            key = next(key for key in plan if before.get(key) != plan[key])
            raise InputError(
                f"--output: {output} was begun for other data ({key} differ); give another folder or empty this one"
            )
    else:
        if any(file.name != ".lock" for file in output.iterdir()):
            raise InputError(f"--output: {output} holds other files; accepted: a new or an empty folder")
        shards = {split: _num_shards(source, shard_bytes) for split, source in splits.items()}
        _write_json(path, {**plan, "shards": shards})
    return [
        Shard(
            split,
            len(source) * i // shards[split],
            len(source) * (i + 1) // shards[split],
            output / f"{_NAME}-{split}.array_record-{i:05}-of-{shards[split]:05}",
        )
        for split, source in splits.items()
        for i in range(shards[split])
    ]


def _digest(source: Source) -> str:
    """Of the names and labels of some examples: the listing, not the content, of what is prepared."""
    digest = hashlib.sha256()
    some = spread(source, 256)
    for i in range(len(some)):
        try:
            example = some[i]
        except InputError:
            continue
        image = example["image"]
        where = image.where if isinstance(image, transforms.Encoded) else ""
        digest.update(os.fsencode(f"{some.indices[i]} {os.path.basename(where)} {int(example['label'])}\n"))
    return digest.hexdigest()


def _num_shards(source: Source, shard_bytes: int) -> int:
    sizes = []
    some = spread(source, 64)
    for i in range(len(some)):
        with contextlib.suppress(InputError):
            sizes.append(len(encoded(some[i]["image"]).data))
    total = len(source) * float(np.mean(sizes)) if sizes else 0
    return min(len(source), max(round(total / shard_bytes), -(-len(source) // _SHARD_RECORDS)))


def _finish(
    output: Path, shards: list[Shard], splits: dict[str, Source], class_names: tuple[str, ...]
) -> None:
    """Adds up what the shards hold and writes what makes the folder a dataset, `FINISHED` last."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=output, dataset_name=_NAME, filetype_suffix="array_record"
    )
    counts, infos = {}, []
    for split, source in splits.items():
        reports = [json.loads(shard.report.read_text()) for shard in shards if shard.split == split]
        unreadable = [line for report in reports for line in report["unreadable"]]
        lengths = [report["written"] for report in reports]
        if sum(lengths) + len(unreadable) != len(source):
            raise InputError(
                f"{output}: {split} has {len(source)} images, but {sum(lengths)} were written and "
                f"{len(unreadable)} are unreadable; start again in another folder"
            )
        if not sum(lengths):
            raise InputError(f"{output}: no image of {split} is readable; the first: {unreadable[0]}")
        counts[split] = dataclasses.asdict(Counts(len(source), sum(lengths), len(lengths), tuple(unreadable)))
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=lengths,
                num_bytes=sum(report["bytes"] for report in reports),
                filename_template=template.replace(split=split),
            )
        )
    _write_json(output / REPORT, {"splits": counts})
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=_NAME, version=tfds.core.Version("1.0.0"), data_dir=str(output), module_name=""
    )
    about = tfds.core.DatasetInfo(builder=identity, features=_features(class_names))
    about.set_file_format("array_record")
    about.set_splits(tfds.core.SplitDict(infos))
    draft = output / ".draft"
    draft.mkdir(exist_ok=True)
    about.write_to_directory(draft)
    for path in sorted(draft.iterdir(), key=lambda path: path.name == FINISHED):
        files.publish(path, output / path.name)
    draft.rmdir()
    for shard in shards:
        shard.report.unlink()


def _features(class_names: tuple[str, ...]) -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=class_names),
            "file_name": tfds.features.Text(),
        }
    )


def _warnings(class_names: tuple[str, ...], counts: dict[str, Counts]) -> tuple[str, ...]:
    if len(class_names) != 1000 or not all(re.fullmatch(r"n\d{8}", name) for name in class_names):
        return ()
    return tuple(
        f"ImageNet-1K has {_IMAGENET[split]:,} images in {split}; found {count.found:,}"
        for split, count in counts.items()
        if count.found != _IMAGENET.get(split, count.found)
    )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with files.whole(path) as file:
        file.write((json.dumps(values, indent=1) + "\n").encode())
