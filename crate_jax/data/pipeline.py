"""Batches of a source: shuffled for ever for training, in order and exactly once for evaluation.

A training batch is a pure function of (seed, step), so the step in a checkpoint is all there is to save
of the data. Global batch ``step`` holds positions ``step·B … step·B + B − 1`` of one stream, reshuffled every
epoch, and process p of P reads the p-th of P equal contiguous parts: any number of processes sees the same
examples with the same augmentation.

Threads fill a batch together, so that no more than a few batches are in memory at any number of threads. Decoding and
resizing leave Python, which is why threads are enough (see docs/data.md for where that ends).
"""

import collections
import dataclasses
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import grain
import numpy as np

from crate_jax import InputError
from crate_jax.data.augmentation import Crops
from crate_jax.data.sources import Source
from crate_jax.data.transforms import Image

Batch = dict[str, np.ndarray]
Augmentation = Callable[[Image, np.random.Generator], np.ndarray]

# Rows that a thread fills before it looks for other work: enough to hide the hand-over, few enough to share a batch.
_ROWS = 16


class _Plan(Protocol):
    """Which examples a batch holds."""

    local_batch: int

    def examples(self, step: int, rows: range) -> Iterator[dict[str, Any]]:
        """The examples of some rows of this process's part of batch ``step``."""
        ...


class Batches:
    """The training batches of one process; made by `train`."""

    def __init__(self, plan: _Plan, num_threads: int | None, prefetch: int):
        self._plan, self._num_threads, self._prefetch = plan, num_threads, prefetch

    def batch(self, step: int) -> Batch:
        """This process's part of global batch ``step`` (from 0).

        Returns:
            "image" uint8 [b, s, s, c], "label" int32 [b] and "index" int64 [b], each example's place in the
            source, where b is the global batch size over the number of processes.

        Raises:
            InputError: an image of the batch is unreadable.
        """
        return next(_stream(self._plan, [step], 0, 1))

    def example(self) -> Batch:
        """The first example of batch 0 as a batch of one, for shapes and types.

        Raises:
            InputError: its image is unreadable.
        """
        one = _Filling(1)
        one.fill(self._plan, 0, range(1))
        return one.arrays

    def iterate(self, start_step: int) -> Iterator[Batch]:
        """Yields batch(start_step), batch(start_step + 1), … without end, prepared ahead by threads.

        Closing the iterator (or dropping it) stops the threads.

        Raises:
            InputError: an image of the next batch is unreadable.
        """
        return _stream(self._plan, itertools.count(start_step), self._num_threads, self._prefetch)


class Evaluation:
    """The evaluation batches of one process, as often as they are iterated; made by `evaluation`."""

    def __init__(self, plan: _Plan, num_batches: int, num_threads: int | None):
        self._plan, self._num_batches, self._num_threads = plan, num_batches, num_threads

    def __len__(self) -> int:
        """The number of batches, the same on every process."""
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches in order; as `Batches.batch`, with "mask" float32 [b] (1 real, 0 padding)."""
        return _stream(self._plan, range(self._num_batches), self._num_threads, 2)


def train(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    augment: Augmentation | None = None,
    crops: Crops | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
    prefetch: int = 2,
) -> Batches:
    """The endless, reshuffled batches of a source.

    Args:
        source: the training examples.
        batch_size: examples in a global batch, over all processes.
        seed: decides order and augmentation.
        augment: maps (image, generator) to the augmented image, such as `transforms.Augment`; the generator
            depends on (seed, position in the stream), so an example is augmented anew each epoch.
        crops: cut out of the image as it is stored, see `augmentation.Crops`; as random as ``augment``.
        process_index: which part of each global batch is this process's.
        process_count: number of equal parts.
        num_threads: threads that prepare batches ahead; None takes one a core, and 0 prepares each batch when it is
            asked for.
        prefetch: batches kept ready or in the making.

    Raises:
        InputError: an empty source, a negative seed or number of threads, or a batch size that the processes cannot share
            equally.
    """
    local_batch = _local_batch(source, batch_size, process_count)
    if seed < 0:
        raise InputError(f"seed is {seed}; accepted: 0 or more")
    if num_threads is not None and num_threads < 0:
        raise InputError(f"data.threads is {num_threads}; accepted: 0 or more")
    shuffle_seed, augment_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
    order = grain.MapDataset.range(len(source)).shuffle(seed=shuffle_seed).repeat()
    plan = _Training(
        source, augment, crops, order, augment_seed, batch_size, process_index * local_batch, local_batch
    )
    return Batches(plan, num_threads, prefetch)


def evaluation(
    source: Source,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
) -> Evaluation:
    """Every example of a source once, in order, the last global batch padded to ``batch_size``.

    A padding example repeats the first one with "mask" 0 and "index" −1.

    Args:
        source: the examples.
        batch_size: examples in a global batch, over all processes.
        process_index: which part of each global batch is this process's.
        process_count: number of equal parts.
        num_threads: threads that prepare batches ahead; None takes one a core.

    Raises:
        InputError: an empty source or a batch size that the processes cannot share equally.
    """
    local_batch = _local_batch(source, batch_size, process_count)
    plan = _Once(source, batch_size, process_index * local_batch, local_batch)
    return Evaluation(plan, -(-len(source) // batch_size), num_threads)


@dataclasses.dataclass(frozen=True)
class _Training:
    """Rows ``first_row …`` of the global batches of an endless, reshuffled stream."""

    source: Source
    augment: Augmentation | None
    crops: Crops | None
    order: grain.MapDataset
    seed: int
    batch_size: int
    first_row: int
    local_batch: int

    def examples(self, step: int, rows: range) -> Iterator[dict[str, Any]]:
        # Philox counts: a position of the stream is a place 2^64 numbers from the next, reached in a microsecond, where a
        # new generator for each example would take ten.
        bits = np.random.Philox(key=self.seed)
        rng, state = np.random.Generator(bits), bits.state
        for row in rows:
            position = step * self.batch_size + self.first_row + row
            index = int(self.order[position])
            example = self.source[index]
            state["state"]["counter"][1] = position
            bits.state = state
            stored = example.get("image")
            if self.augment is not None:
                example = {**example, "image": self.augment(stored, rng)}
            if self.crops is not None:
                example = {**example, **self.crops(stored, rng)}
            yield {**example, "index": np.int64(index)}


@dataclasses.dataclass(frozen=True)
class _Once:
    """Rows ``first_row …`` of the global batches of one pass, in order, padded at the end."""

    source: Source
    batch_size: int
    first_row: int
    local_batch: int

    def examples(self, step: int, rows: range) -> Iterator[dict[str, Any]]:
        for row in rows:
            position = step * self.batch_size + self.first_row + row
            real = position < len(self.source)
            example = self.source[position if real else 0]
            yield {**example, "index": np.int64(position if real else -1), "mask": np.float32(real)}


class _Filling:
    """A batch in the making; threads put rows into it."""

    def __init__(self, size: int):
        self.arrays: Batch = {}
        self._size, self._lock = size, threading.Lock()

    def fill(self, plan: _Plan, step: int, rows: range) -> None:
        for row, example in zip(rows, plan.examples(step, rows), strict=True):
            if not self.arrays:
                self._allocate(example)
            for name, value in example.items():
                self.arrays[name][row] = value

    def _allocate(self, example: dict[str, Any]) -> None:
        """Shapes and types are known when the first example is."""
        with self._lock:
            if not self.arrays:
                values = {name: np.asarray(value) for name, value in example.items()}
                self.arrays = {
                    name: np.empty((self._size, *value.shape), value.dtype) for name, value in values.items()
                }


def _stream(plan: _Plan, steps: Iterable[int], num_threads: int | None, prefetch: int) -> Iterator[Batch]:
    """The batches of ``steps``, in order."""
    size, steps = plan.local_batch, iter(steps)
    if num_threads is None:
        num_threads = usable_cores()
    if not num_threads:
        for step in steps:
            batch = _Filling(size)
            batch.fill(plan, step, range(size))
            yield batch.arrays
        return
    rows = min(_ROWS, -(-size // num_threads))
    parts = [range(start, min(start + rows, size)) for start in range(0, size, rows)]
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="data")
    pending: collections.deque = collections.deque()

    def top_up() -> None:
        for step in itertools.islice(steps, max(1, prefetch) - len(pending)):
            batch = _Filling(size)
            pending.append((batch, [pool.submit(batch.fill, plan, step, part) for part in parts]))

    try:
        top_up()
        while pending:
            batch, tasks = pending.popleft()
            for task in tasks:
                task.result()
            top_up()
            yield batch.arrays
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _local_batch(source: Source, batch_size: int, process_count: int) -> int:
    if len(source) == 0:
        raise InputError("the data source is empty; at least one example is needed")
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"batch size is {batch_size}; accepted: a positive multiple of {process_count} processes"
        )
    return batch_size // process_count
