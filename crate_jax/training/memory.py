"""Whether a run can fit into the memory of its devices, estimated before anything is made."""

import contextlib
import math
import os
from pathlib import Path

import jax
import numpy as np

from crate_jax import InputError
from crate_jax.parallel.sharding import batch_shards
from crate_jax.runs.console import human_bytes
from crate_jax.training.building import Run

# Where Linux says how much memory a container may use; "max" where there is no limit.
CGROUP = Path("/sys/fs/cgroup/memory.max")


def check(run: Run) -> None:
    """Raise where a run needs more memory than there is, whatever the compiler does.

    Per device that is its part of the parameters, as often as they are kept (themselves, their gradients, their average),
    and of a batch as it comes. Activations and the optimiser's state come on top; the compiled step says how much.

    Raises:
      InputError: says how much is needed and how much there is.
    """
    params = jax.tree.leaves(run.model.abstract_params)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in params)
    mesh, copies = run.mesh, 2 + (run.config.ema_decay > 0)
    example = sum(
        math.prod(shape or ()) * np.dtype(kind).itemsize
        for shape, kind in run.info.example(_image_shape(run)).values()
    )
    batch = example * run.config.batch_size // batch_shards(mesh)
    # No axis but these two cuts parameters.
    needed = copies * size // (mesh.shape["fsdp"] * mesh.shape["tensor"]) + batch
    there = available(mesh.local_devices)
    if there is not None and needed > there:
        count = sum(math.prod(leaf.shape) for leaf in params)
        raise InputError(
            f"config: {count:,} parameters and batches of {run.config.batch_size:,} need more than {human_bytes(needed)} of "
            f"a device that has {human_bytes(there)}; accepted: a smaller model or batch_size, smaller images, or more "
            "devices (mesh.preset)"
        )


def available(devices: list[jax.Device]) -> int | None:
    """Bytes of memory that each of some devices of this process may use; None where nobody says."""
    stats = devices[0].memory_stats()
    if stats is not None:
        return stats.get("bytes_limit")
    if devices[0].platform != "cpu":
        return None
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):
        found = min(found, int(CGROUP.read_text()))
    return found // len(devices)


def _image_shape(run: Run) -> tuple[int, ...] | None:
    shape = run.config.data.shape
    return None if shape is None else (*shape, run.config.data.channels or run.info.channels)
