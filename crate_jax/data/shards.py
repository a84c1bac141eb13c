"""The shards of a prepared dataset: what is in one, and writing many at once in processes of their own.

A shard is a function of the dataset and its number alone, so processes write them in any order and a preparation that was
killed goes on with the shards that are missing.
"""

import contextlib
import dataclasses
import errno
import gc
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from crate_jax import InputError
from crate_jax.data import files, transforms
from crate_jax.data.dataset import Source
from crate_jax.data.pipeline import usable_cores

# (title, total) → a context manager that gives a function of the number of images done since its last call.
Progress = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]


@contextlib.contextmanager
def silent(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A `Progress` that shows nothing."""
    del title, total
    yield lambda count: None


@dataclasses.dataclass(frozen=True)
class Shard:
    """Examples [start, stop) of a split, and where they go."""

    split: str
    start: int
    stop: int
    path: Path

    @property
    def report(self) -> Path:
        """What was written into the shard: it lies beside it until the whole is finished."""
        return self.path.with_name(f".{self.path.name}.json")


def write_missing(
    shards: list[Shard],
    splits: dict[str, Source],
    *,
    stop_at_unreadable: bool,
    num_processes: int | None,
    progress: Progress,
) -> None:
    """Writes the shards that are not there.

    Args:
        shards: all of them, in one folder.
        splits: the examples of each split.
        stop_at_unreadable: stop at the first image that cannot be decoded, rather than leave it out.
        num_processes: how many write at once; None takes one a core.
        progress: shows it.

    Raises:
        InputError: an unreadable image (if that is to stop), a process that was killed, a full disk.
    """
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
    shards: list[Shard],
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


def _write_in_worker(shard: Shard, stop_at_unreadable: bool) -> int:
    return _write(shard, _worker_splits[shard.split], stop_at_unreadable)


def _write(shard: Shard, source: Source, stop_at_unreadable: bool) -> int:
    """Writes a shard under a temporary name, counts its records, and only then gives it its own; returns its examples."""
    from array_record.python import array_record_module

    # Its own name for each process: what a killed preparation's processes still write, no other one touches.
    temporary = shard.path.with_name(f".{shard.path.name}.{os.getpid()}.tmp")
    unreadable: list[str] = []
    try:
        written, size = _write_records(temporary, shard, source, stop_at_unreadable, unreadable)
        reader = array_record_module.ArrayRecordReader(str(temporary))
        found = reader.num_records()
        reader.close()
    except RuntimeError as error:  # Of array_record's own; it names the file and where in it.
        temporary.unlink(missing_ok=True)
        number = errno.ENOSPC if "No space left" in str(error) else errno.EIO
        raise OSError(number, os.strerror(number), str(temporary)) from error
    if found != written:
        raise InputError(f"{temporary} holds {found} records, {written} were written; is the disk full?")
    with files.whole(shard.report) as file:
        file.write(json.dumps({"written": written, "bytes": size, "unreadable": unreadable}).encode())
    files.publish(temporary, shard.path)
    return shard.stop - shard.start


def _write_records(
    path: Path, shard: Shard, source: Source, stop_at_unreadable: bool, unreadable: list[str]
) -> tuple[int, int]:
    """Writes the records of a shard; returns how many there are and their bytes, and adds a line for each image left out."""
    from array_record.python import array_record_module

    written, size = 0, 0
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for index in range(shard.start, shard.stop):
        try:
            example = source[index]
            content = encoded(example["image"])
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
    return written, size


def _record(image: transforms.Encoded, label: int) -> bytes:
    """A tf.train.Example, the same bytes each time."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(image.data)
    example.features.feature["label"].int64_list.value.append(label)
    example.features.feature["file_name"].bytes_list.value.append(os.fsencode(os.path.basename(image.where)))
    return example.SerializeToString(deterministic=True)


def encoded(image: transforms.Image) -> transforms.Encoded:
    """An image as a file's content; pixels become a PNG, which loses nothing."""
    return (
        image if isinstance(image, transforms.Encoded) else transforms.Encoded(transforms.encode(image), "")
    )
