"""How fast the input pipeline is, and whether training waits for it."""

import time

import jax

from crate_jax import InputError
from crate_jax.data.pipeline import Batches, usable_cores
from crate_jax.parallel import processes
from crate_jax.parallel.feed import Feed
from crate_jax.parallel.sharding import shard_batch
from crate_jax.training.building import Run
from crate_jax.training.program import compile_program

SECONDS = 10.0  # Of each of the three measurements; two batches at least.


def measure(run: Run) -> dict[str, str]:
    """Rows for a table: examples per second of the input pipeline, of the training step and of both together, and the share
    of time that training waits for data. The steps are those of the run, from its first parameters; nothing is kept.

    Raises:
      InputError: several processes. Each would end by its own clock, and the others wait for its part of a step.
    """
    if processes.several():
        raise InputError(f"throughput: found {jax.process_count()} processes; accepted: one")
    with jax.set_mesh(run.mesh):
        batches = run.data.train_batches()
        program = compile_program(run, batches.example())
        current = program.initial_state(run)
        rows, batch = _pipeline(batches, run)
        size, batch = run.config.batch_size, shard_batch(batch, run.mesh)
        current, _ = program.train_step(current, batch)
        jax.block_until_ready(current)
        began, count = time.perf_counter(), 0
        while count < 2 or time.perf_counter() - began < SECONDS:
            current, report = program.train_step(current, batch)
            jax.block_until_ready(report)
            count += 1
        rows["step alone"] = f"{count * size / (time.perf_counter() - began):,.0f} examples/s"
        feed = Feed(batches.iterate(0), run.mesh)
        next(feed)
        began, waited, count = time.perf_counter(), feed.waited, 0
        while count < 2 or time.perf_counter() - began < SECONDS:
            current, report = program.train_step(current, next(feed))
            jax.block_until_ready(report)
            count += 1
        span = time.perf_counter() - began
        feed.close()
    rows["together"] = (
        f"{count * size / span:,.0f} examples/s, {(feed.waited - waited) / span:.1%} of the time waiting for data"
    )
    return rows


def _pipeline(batches: Batches, run: Run) -> tuple[dict[str, str], dict]:
    """The row of the pipeline alone, and its last batch."""
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
    threads = run.config.data.threads or usable_cores()
    row = (
        f"{count * run.config.batch_size / span:,.0f} examples/s with {threads} threads, "
        f"{count * len(batch['index']) / worked:,.0f} per second of a core"
    )
    return {"pipeline alone": row}, batch
