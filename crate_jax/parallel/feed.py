"""Batches on their way to the devices: a thread sends them ahead of the steps that take them."""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh

from crate_jax.parallel.sharding import shard_batch

# On the devices and not yet taken; one would do, were all batches equally quick to prepare.
AHEAD = 2


class Feed:
    """An iterator over batches as sharded arrays, sent ahead by a thread.

    Args:
      batches: this process's slices of the batches; closed with the feed.
      mesh: where they go.
    """

    def __init__(self, batches: Iterator[dict[str, np.ndarray]], mesh: Mesh):
        self.waited = 0.0  # Seconds that were spent waiting for a batch.
        self._batches, self._mesh = batches, mesh
        self._ready: queue.Queue = queue.Queue(AHEAD)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send, name="feed", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        start = time.perf_counter()
        item = self._ready.get()
        self.waited += time.perf_counter() - start
        if isinstance(item, BaseException):
            self._ready.put(item)  # Whoever asks again hears the same.
            raise item
        return item

    def close(self) -> None:
        """Stop the thread and whatever prepares batches."""
        self._closing.set()
        self._thread.join()
        self._batches.close()

    def _send(self) -> None:
        try:
            for batch in self._batches:
                if not self._put(shard_batch(batch, self._mesh)):
                    return
            self._put(StopIteration())
        except BaseException as error:  # An unreadable image is the trainer's to report.
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._closing.is_set():
            try:
                self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
