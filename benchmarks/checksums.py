"""What the checksums of a checkpoint cost: CRATE-L's parameters and Lion's momentum, saved, summed up and verified.

    python -m benchmarks.checksums [FOLDER]

Seconds of processor time, all threads together, and of a clock; the least of three saves each.
"""

import dataclasses
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from crate_jax import models
from crate_jax.runs import sums
from crate_jax.training import checkpoint, checksums
from crate_jax.training.state import TrainState

REPEATS = 3


class Stopwatch:
    """Seconds of processor time and of a clock since it was made."""

    def __init__(self):
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime, time.perf_counter()

    def read(self) -> dict[str, float]:
        cpu, clock = (now - start for now, start in zip(self._now(), self._start, strict=True))
        return {"cpu": cpu, "clock": clock}


def main(root: Path) -> None:
    params = models.create(models.crate("large", num_classes=1000)).init(jax.random.key(0))
    opt_state = jax.tree.map(lambda x: x + 1, params)
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, params, opt_state, None, {}, jnp.zeros((), jnp.bool_))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    seconds: dict[str, list[dict[str, float]]] = {"save": [], "sums": [], "verify": []}
    for step in range(1, REPEATS + 1):
        checkpoints = checkpoint.Checkpoints(root)
        checkpoints.start_saving()
        watch = Stopwatch()
        checkpoints.save(dataclasses.replace(state, step=zero + step), step, None)
        checkpoints.wait()
        seconds["save"].append(watch.read())
        checkpoints.close()
        folder = root / "checkpoints" / str(step)
        # The same sums once more, on files that are still in the page cache, as they are when the list is written.
        watch = Stopwatch()
        sums.sums(checksums.files_of(folder))
        seconds["sums"].append(watch.read())
        watch = Stopwatch()
        assert checksums.damage(folder) is None
        seconds["verify"].append(watch.read())
    least = {
        name: {kind: min(row[kind] for row in rows) for kind in ("cpu", "clock")}
        for name, rows in seconds.items()
    }
    print(json.dumps({"bytes": size, "seconds": least}, indent=1))


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    main(given)
    shutil.rmtree(given / "checkpoints")
