"""Writing a dataset as array_record, in the form of TensorFlow datasets, so that Grain and TFDS read it too.

A shard is a function of the dataset and its number alone, so processes write them in any order and a preparation that was
killed goes on with the shards that are missing. A shard gets its name when it is complete and on disk, and
``dataset_info.json``, without which the folder is not read, is written last.
"""

import contextlib
import dataclasses
import gc
import hashlib
import json
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from crate_jax import InputError
from crate_jax.data import sources, transforms
from crate_jax.data.dataset import Source
from crate_jax.data.pipeline import usable_cores

PLAN, REPORT, FINISHED = "prepare.json", "prepared.json", "dataset_info.json"
_NAME = "images"  # The dataset's name in the files' names.
# At most: reading a record takes time that grows with their number in its file, 11 µs at 5,000, 73 µs at 50,000.
_SHARD_RECORDS = 4096
# ImageNet-1K has so many images; 1,000 classes with such names are taken for it.
_IMAGENET = {"train": 1_281_167, "val": 50_000, "test": 50_000, "validation": 50_000}


# (title, total) → a context manager that gives a function of the number of images done since its last call.
Progress = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]


@contextlib.contextmanager
def _silent(title: str, total: int) -> Iterator[Callable[[int], None]]:
    del title, total
    yield lambda count: None


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of a split: images found, images written, shards, and a line for each unreadable file."""

    found: int
    written: int
    shards: int
    unreadable: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Prepared:
    class_names: tuple[str, ...]
    splits: dict[str, Counts]
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Examples [start, stop) of a split, and where they go."""

    split: str
    start: int
    stop: int
    path: Path

    @property
    def report(self) -> Path:
        """What was written into the shard: it lies beside it until the whole is finished."""
        return self.path.with_name(f".{self.path.name}.json")


def prepare(
    name: str,
    output: Path,
    *,
    data_dir: str | None = None,
    stop_at_unreadable: bool = False,
    num_processes: int | None = None,
    shard_bytes: int = 2**28,
    progress: Progress = _silent,
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
        progress: shows it, such as `training.console.progress`.

    Returns:
        what was written.

    Raises:
        InputError: the dataset or ``output`` cannot be used, an image is unreadable (if that is to stop), counts differ.
    """
    if name == "stdlib" or name.startswith("text:"):
        raise InputError(f"--input: {name} is text, read as it lies; accepted: labelled images")
    if name == "digits":  # A record's white is 255; the same values would be nearly black.
        raise InputError("--input: white is 16 in digits; accepted: images whose white is 255")
    dataset = sources.find(name, data_dir=data_dir, exclude=str(output))
    splits = {split: dataset.load(split) for split in dataset.splits}
    output.mkdir(parents=True, exist_ok=True)
    with _lock(output):
        shards = _plan(name, splits, output, dataset.classes, shard_bytes)
        if not (output / FINISHED).is_file():
            _write_missing(shards, splits, stop_at_unreadable, num_processes, progress)
            _finish(output, shards, splits, dataset.classes)
    report = json.loads((output / REPORT).read_text(encoding="utf-8"))
    counts = {
        split: Counts(**{**values, "unreadable": tuple(values["unreadable"])})
        for split, values in report["splits"].items()
    }
    return Prepared(dataset.classes, counts, _warnings(dataset.classes, counts))


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
) -> list[_Shard]:
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
        _write_whole(path, json.dumps({**plan, "shards": shards}, indent=1) + "\n")
    return [
        _Shard(
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
    for i in np.linspace(0, len(source) - 1, min(len(source), 256), dtype=int):
        try:
            example = source[int(i)]
        except InputError:
            continue
        image = example["image"]
        where = image.where if isinstance(image, transforms.Encoded) else ""
        digest.update(f"{i} {os.path.basename(where)} {int(example['label'])}\n".encode())
    return digest.hexdigest()


def _num_shards(source: Source, shard_bytes: int) -> int:
    sizes = []
    for i in np.linspace(0, len(source) - 1, min(len(source), 64), dtype=int):
        with contextlib.suppress(InputError):
            sizes.append(len(_content(source[int(i)]["image"]).data))
    total = len(source) * float(np.mean(sizes)) if sizes else 0
    return min(len(source), max(round(total / shard_bytes), -(-len(source) // _SHARD_RECORDS)))


def _content(image: transforms.Image) -> transforms.Encoded:
    """An image as a file's content; pixels become a PNG, which loses nothing."""
    return (
        image if isinstance(image, transforms.Encoded) else transforms.Encoded(transforms.encode(image), "")
    )


def _write_missing(
    shards: list[_Shard],
    splits: dict[str, Source],
    stop_at_unreadable: bool,
    num_processes: int | None,
    progress: Progress,
) -> None:
    for left in shards[0].path.parent.glob(".*.tmp"):
        left.unlink()
    missing = [shard for shard in shards if not shard.path.is_file()]
    done = sum(shard.stop - shard.start for shard in shards if shard.path.is_file())
    with progress("preparing", sum(len(source) for source in splits.values())) as advance:
        advance(done)
        workers = min(len(missing), num_processes or usable_cores())
        if workers <= 1:
            for shard in missing:
                advance(_write(shard, splits[shard.split], stop_at_unreadable))
            return
        failure = _in_processes(workers, missing, splits, stop_at_unreadable, advance)
    gc.collect()  # The pool's semaphores, which a failing command would leave to a warning of Python's.
    if isinstance(failure, BrokenProcessPool):
        raise InputError(
            "a process that wrote a shard was killed (out of memory?); start again to go on, perhaps with fewer --processes"
        )
    if failure is not None:
        raise failure


def _in_processes(
    num_processes: int,
    shards: list[_Shard],
    splits: dict[str, Source],
    stop_at_unreadable: bool,
    advance: Callable[[int], None],
) -> BaseException | None:
    """Writes shards; returns what went wrong first, once all processes have ended and their semaphores are gone."""
    context = multiprocessing.get_context("spawn")  # A fork could inherit the locks of threads.
    start = {"initializer": _start_worker, "initargs": (splits, os.getpid())}
    with ProcessPoolExecutor(num_processes, context, **start) as pool:
        # Ctrl-C waits until all processes are started; they ignore it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        tasks = [pool.submit(_write_in_worker, shard, stop_at_unreadable) for shard in shards]
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            for task in as_completed(tasks):
                if (failure := task.exception()) is not None:
                    pool.shutdown(wait=False, cancel_futures=True)
                    return failure
                advance(task.result())
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            return KeyboardInterrupt()
    return None


_worker_splits: dict[str, Source] = {}  # Sent to each process once, not with each shard.


def _start_worker(splits: dict[str, Source], parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The first process sees Ctrl-C and ends the others.
    _worker_splits.update(splits)

    def die_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()


def _write_in_worker(shard: _Shard, stop_at_unreadable: bool) -> int:
    return _write(shard, _worker_splits[shard.split], stop_at_unreadable)


def _write(shard: _Shard, source: Source, stop_at_unreadable: bool) -> int:
    """Writes a shard under a temporary name, counts its records, and only then gives it its own; returns its examples."""
    from array_record.python import array_record_module

    # Its own name for each process: what a killed preparation's processes still write, no other one touches.
    temporary = shard.path.with_name(f".{shard.path.name}.{os.getpid()}.tmp")
    unreadable, written, size = [], 0, 0
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    for index in range(shard.start, shard.stop):
        try:
            example = source[index]
            content = _content(example["image"])
            transforms.decode(*content)
        except InputError as error:
            if stop_at_unreadable:
                raise
            unreadable.append(str(error))
            continue
        record = _record(content, int(example["label"]))
        writer.write(record)
        written, size = written + 1, size + len(record)
    writer.close()
    reader = array_record_module.ArrayRecordReader(str(temporary))
    found = reader.num_records()
    reader.close()
    if found != written:
        raise InputError(f"{temporary} holds {found} records, {written} were written; is the disk full?")
    _sync(temporary)
    _write_whole(shard.report, json.dumps({"written": written, "bytes": size, "unreadable": unreadable}))
    temporary.replace(shard.path)
    return shard.stop - shard.start


def _record(image: transforms.Encoded, label: int) -> bytes:
    """A tf.train.Example, the same bytes each time."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(image.data)
    example.features.feature["label"].int64_list.value.append(label)
    example.features.feature["file_name"].bytes_list.value.append(os.path.basename(image.where).encode())
    return example.SerializeToString(deterministic=True)


def _finish(
    output: Path, shards: list[_Shard], splits: dict[str, Source], class_names: tuple[str, ...]
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
    _write_whole(output / REPORT, json.dumps({"splits": counts}, indent=1) + "\n")
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=_NAME, version=tfds.core.Version("1.0.0"), data_dir=str(output), module_name=""
    )
    about = tfds.core.DatasetInfo(builder=identity, features=_features(class_names))
    about.set_file_format("array_record")
    about.set_splits(tfds.core.SplitDict(infos))
    draft = output / ".draft"
    draft.mkdir(exist_ok=True)
    about.write_to_directory(draft)
    for file in sorted(draft.iterdir(), key=lambda file: file.name == FINISHED):
        _sync(file)
        file.replace(output / file.name)
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


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _sync(temporary)
    temporary.replace(path)


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
