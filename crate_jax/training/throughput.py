"""How fast the input pipeline is, and whether training waits for it."""

import time
from collections.abc import Callable

import jax

from crate_jax.data.pipeline import Batches, usable_cores
from crate_jax.parallel.feed import Feed
from crate_jax.parallel.sharding import shard_batch
from crate_jax.training.run import Run
from crate_jax.training.state import TrainState

SECONDS = 10.0  # Of each of the three measurements; two batches at least.


def measure(batches: Batches, train_step: Callable, current: TrainState, run: Run) -> dict[str, str]:
    """Rows for a table: images a second of the pipeline, of the step, of both, and the share of time spent waiting.

    Args:
      batches: the training batches.
      train_step: the compiled step, which donates its state.
      current: the first state.
      run: the run.
    """
    size = run.config.batch_size
    stream = batches.iterate(0)
    next(stream)  # Threads start, files are opened.
    # Work that the threads did ahead of the first measured batch counts for it, and what they do ahead at the end does not:
    # images for each processor-second are those made meanwhile, to within the two batches that are kept ready.
    began, worked, count = time.perf_counter(), time.process_time(), 0
    while count < 2 or time.perf_counter() - began < SECONDS:
        batch = next(stream)
        count += 1
    span, worked = time.perf_counter() - began, time.process_time() - worked
    stream.close()
    rows = {
        "pipeline alone": f"{count * size / span:,.0f} examples/s with {run.config.data.threads or usable_cores()} threads, "
        f"{count * len(batch['index']) / worked:,.0f} for each second of a core",
    }
    batch = shard_batch(batch, run.mesh)
    current, _ = train_step(current, batch)
    jax.block_until_ready(current)
    began, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - began < SECONDS:
        current, report = train_step(current, batch)
        jax.block_until_ready(report)
        count += 1
    rows["step alone"] = f"{count * size / (time.perf_counter() - began):,.0f} examples/s"
    feed = Feed(batches.iterate(0), run.mesh)
    next(feed)
    began, waited, count = time.perf_counter(), feed.waited, 0
    while count < 2 or time.perf_counter() - began < SECONDS:
        current, report = train_step(current, next(feed))
        jax.block_until_ready(report)
        count += 1
    span = time.perf_counter() - began
    feed.close()
    rows["together"] = (
        f"{count * size / span:,.0f} examples/s, {(feed.waited - waited) / span:.1%} of the time waiting for data"
    )
    return rows
