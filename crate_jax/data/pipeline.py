"""Batches of a source: shuffled for ever for training, in order and exactly once for evaluation.

A training batch is a pure function of (seed, step), so the step in a checkpoint is all there is to save
of the data. Global batch ``step`` holds positions ``step·B … step·B + B − 1`` of one stream, reshuffled every
epoch, and process p of P reads the p-th of P equal contiguous parts: any number of processes sees the same
examples with the same augmentation.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator

import grain
import numpy as np

from crate_jax import InputError
from crate_jax.data.sources import Source

Batch = dict[str, np.ndarray]
Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Batches:
    """The training batches of one process; made by `train`."""

    def __init__(self, dataset: grain.MapDataset, read_options: grain.ReadOptions):
        self._dataset = dataset
        self._read_options = read_options

    def batch(self, step: int) -> Batch:
        """This process's part of global batch ``step`` (from 0).

        Returns:
            "image" uint8 [b, s, s, c], "label" int32 [b] and "index" int64 [b], each example's place in the
            source, where b is the global batch size over the number of processes.

        Raises:
            InputError: an image of the batch is unreadable.
        """
        return self._dataset[step]

    def iterate(self, start_step: int) -> Iterator[Batch]:
        """Yields batch(start_step), batch(start_step + 1), … without end, prepared ahead by threads.

        Closing the iterator (or dropping it) stops the threads.

        Raises:
            InputError: an image of the next batch is unreadable.
        """
        return _prefetched(self._dataset[start_step:], self._read_options)


class Evaluation:
    """The evaluation batches of one process, as often as they are iterated; made by `evaluation`."""

    def __init__(self, dataset: grain.MapDataset, read_options: grain.ReadOptions):
        self._dataset = dataset
        self._read_options = read_options

    def __len__(self) -> int:
        """The number of batches, the same on every process."""
        return len(self._dataset)

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches in order; as `Batches.batch`, with "mask" float32 [b] (1 real, 0 padding)."""
        return _prefetched(self._dataset, self._read_options)


def train(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    augment: Augmentation | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
    prefetch: int | None = None,
) -> Batches:
    """The endless, reshuffled batches of a source.

    Args:
        source: the training examples.
        batch_size: examples in a global batch, over all processes.
        seed: decides order and augmentation.
        augment: maps (image, generator) to the augmented image, such as `transforms.Augment`; the generator
            depends on (seed, position in the stream), so an example is augmented anew each epoch.
        process_index: which part of each global batch is this process's.
        process_count: number of equal parts.
        num_threads: threads that prepare batches ahead; None takes one a core, 16 at most, and 0
            prepares each batch when it is asked for.
        prefetch: batches kept ready; None keeps two more than there are threads.

    Raises:
        InputError: an empty source, a negative seed or a batch size that the processes cannot share equally.
    """
    local_batch = _local_batch(source, batch_size, process_count)
    if seed < 0:
        raise InputError(f"seed is {seed}; accepted: 0 or more")
    # Explicit seeds: those Grain would derive depend on a transformation's depth in the pipeline.
    shuffle_seed, augment_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
    dataset = (
        grain.MapDataset.range(len(source))
        .shuffle(seed=shuffle_seed)
        .repeat()
        .random_map(functools.partial(_train_example, source, augment), seed=augment_seed)
        .batch(local_batch, drop_remainder=True)
    )
    return Batches(dataset[process_index::process_count], _read_options(num_threads, prefetch))


def evaluation(
    source: Source, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Evaluation:
    """Every example of a source once, in order, the last global batch padded to ``batch_size``.

    A padding example repeats the first one with "mask" 0 and "index" −1.

    Args:
        source: the examples.
        batch_size: examples in a global batch, over all processes.
        process_index: which part of each global batch is this process's.
        process_count: number of equal parts.

    Raises:
        InputError: an empty source or a batch size that the processes cannot share equally.
    """
    local_batch = _local_batch(source, batch_size, process_count)
    num_batches = -(-len(source) // batch_size)
    dataset = (
        grain.MapDataset.range(num_batches * batch_size)
        .map(functools.partial(_evaluation_example, source))
        .batch(local_batch)
    )
    return Evaluation(dataset[process_index::process_count], _read_options(None, None))


def _train_example(
    source: Source, augment: Augmentation | None, index: int, rng: np.random.Generator
) -> Batch:
    example = source[index]
    image = example["image"] if augment is None else augment(example["image"], rng)
    return {"image": image, "label": example["label"], "index": np.int64(index)}


def _evaluation_example(source: Source, position: int) -> Batch:
    real = position < len(source)
    example = source[position if real else 0]
    return {**example, "index": np.int64(position if real else -1), "mask": np.float32(real)}


def _prefetched(dataset: grain.MapDataset, read_options: grain.ReadOptions) -> Iterator[Batch]:
    with contextlib.closing(iter(dataset.to_iter_dataset(read_options))) as batches:
        yield from batches


def _local_batch(source: Source, batch_size: int, process_count: int) -> int:
    if len(source) == 0:
        raise InputError("the data source is empty; at least one example is needed")
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"batch size is {batch_size}; accepted: a positive multiple of {process_count} processes"
        )
    return batch_size // process_count


def _read_options(num_threads: int | None, prefetch: int | None) -> grain.ReadOptions:
    if num_threads is None:
        num_threads = min(16, os.cpu_count() or 1)
    # A thread prepares a whole batch at a time, so fewer buffered batches than threads would leave some idle.
    buffered = num_threads + 2 if prefetch is None else prefetch
    return grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffered)
