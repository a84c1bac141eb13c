"""How long a save keeps training waiting, how long until it counts, and what a restore of the parameters alone reads.

python benchmarks/checkpoint.py [WIDTH]     # CRATE of that width and 12 layers, AdamW, split over 4 CPU devices
"""

import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("PJRT_NPROC", "16")

import jax

from crate_jax import models
from crate_jax.parallel import sharding
from crate_jax.runs.config import MeshConfig
from crate_jax.runs.optimizers import AdamW
from crate_jax.training import optim, state
from crate_jax.training.checkpoint import Checkpoints


def resident_bytes(what: str = "VmRSS") -> int:
    """Of this process, now (VmRSS) or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def read_bytes() -> int:
    """What this process has asked files for so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def main(width: int) -> None:
    mesh = sharding.make_mesh(MeshConfig("fsdp"))
    model = models.create(models.crate("tiny", dim=width, heads=width // 64))
    tx = optim.make_optimizer(AdamW(), lambda step: 1e-3)
    abstract = state.abstract_state(model, tx, mesh, ema=False, metric_names=("loss",))
    current = state.make_state(model, tx, jax.random.key(0), abstract)
    # Moments that are all zero would be compressed to nothing.
    _, moments = jax.jit(tx.update)(current.params, current.opt_state, current.params)
    current = jax.block_until_ready(dataclasses.replace(current, opt_state=moments))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(current))
    work = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda _, x: x @ x / 512, x))
    x = jax.block_until_ready(work(jax.numpy.ones((512, 512))))
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        checkpoints.start_saving()
        start, before = time.perf_counter(), resident_bytes()
        checkpoints.save(current, 1, None)
        returned = time.perf_counter() - start
        counted_at_return, during = checkpoints.last_saved, 0
        done = Path(folder) / "checkpoints" / "1"
        while not done.exists():
            x = jax.block_until_ready(work(x))
            during += 1
        checkpoints.wait()
        complete = time.perf_counter() - start
        added = resident_bytes("VmHWM") - before
        checkpoints.close()
        asked = {}
        for name, restore in (
            ("whole state", lambda saved: saved.restore(abstract, 1)),
            ("parameters", lambda saved: saved.restore_params(abstract.params, 1, averaged=False)),
        ):
            saved, begun = Checkpoints(Path(folder), create=False), read_bytes()
            jax.block_until_ready(restore(saved))
            asked[name] = read_bytes() - begun
            saved.close()
    mib = 2**20
    print(f"state of {size / mib:,.0f} MiB over {mesh.size} devices")
    print(
        f"save returned after {returned:.2f} s (latest_step then: {counted_at_return}), complete after {complete:.2f} s"
    )
    print(
        f"other programs that ran to their end while it was written: {during}; memory added at most {added / mib:,.0f} MiB"
    )
    for name, count in asked.items():
        print(f"restoring the {name} read {count / mib:,.0f} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 768)
