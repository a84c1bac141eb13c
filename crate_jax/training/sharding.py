"""The mesh and the rules that place parameters, optimiser state and batches on it.

Axes: `data` replicates parameters and splits the batch; `fsdp` splits both; `tensor` splits heads and features.
"""

import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from crate_jax import InputError
from crate_jax.training.config import MeshConfig

# Batches are split over both of these.
BATCH_AXES = ("data", "fsdp")

# Path pattern → partition of the trailing dimensions (a stack adds a leading, unsplit one). The first match wins; the
# paths of optimiser moments end in those of their parameters, so one table serves both.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(mssa|tssa)/bases$", ("tensor", "fsdp", None)),
    (r"(mssa|tssa)/(fixed_)?output$", ("tensor", None, "fsdp")),
    (r"(dictionary|decoder)$", ("fsdp", "tensor")),
    (r"(projection|head)/kernel$", ("fsdp", "tensor")),
    (r"qkv/kernel$", ("fsdp", None, "tensor", None)),
    (r"attention_output/kernel$", ("tensor", None, "fsdp")),
    (r"mlp_in/kernel$", ("fsdp", "tensor")),
    (r"mlp_out/kernel$", ("tensor", "fsdp")),
    (r"(position|token)_embedding$", (None, "fsdp")),
)
# A larger array that no rule matches, or that its rule cannot split, is an error rather than silently replicated.
MAX_REPLICATED_BYTES = 2**20


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with axes data, fsdp, tensor over all devices.

    Raises:
      InputError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    found = "×".join(f"{name}={size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise InputError(f"mesh: found {found}; accepted: sizes ≥ 1, at most one of them -1")
    if free and len(devices) % known == 0:
        sizes[free[0]] = len(devices) // known
    if int(np.prod(list(sizes.values()))) != len(devices):
        raise InputError(
            f"mesh: found {found} for {len(devices)} devices; the axes must multiply to that number"
        )
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices
    )


def spec_for(path: str, shape: tuple[int, ...], itemsize: int, mesh: Mesh) -> PartitionSpec:
    """The partition of one array by the first rule that matches its path.

    An axis that does not divide its dimension is dropped for small arrays.

    Raises:
      InputError: an array above MAX_REPLICATED_BYTES that matches no rule or does not divide the mesh.
    """
    large = int(np.prod(shape)) * itemsize > MAX_REPLICATED_BYTES
    for pattern, axes in RULES:
        if re.search(pattern, path) and len(shape) >= len(axes):
            dims = [None] * (len(shape) - len(axes)) + list(axes)
            for i, axis in enumerate(dims):
                if axis is not None and shape[i] % mesh.shape[axis]:
                    if large:
                        raise InputError(
                            f"mesh: dimension {i} of {path}, {shape[i]} long, does not divide over {axis}="
                            f"{mesh.shape[axis]}; sizes that work: divisors of {shape[i]}"
                        )
                    dims[i] = None
            return PartitionSpec(*dims)
    if large:
        raise InputError(f"sharding: no rule matches {path} {shape}, which is above 1 MiB; add one to RULES")
    return PartitionSpec()


def tree_shardings(tree, mesh: Mesh):
    """A NamedSharding for each leaf of a tree of arrays or abstract arrays, by path."""

    def one(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, spec_for(name, leaf.shape, leaf.dtype.itemsize, mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches: the leading axis over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises InputError unless every device gets the same number of examples in every accumulation step."""
    shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    unit = shards * accumulate
    if accumulate < 1 or batch_size < 1 or batch_size % unit:
        below = max(1, batch_size // unit) * unit if unit > 0 else 0
        raise InputError(
            f"batch_size: {batch_size} does not divide over data×fsdp = {shards} devices × accumulate = {accumulate}; "
            f"nearest sizes that work: {below}, {below + unit}"
        )


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's slice of a global batch as global arrays."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def bytes_per_device(tree, shardings) -> int:
    """Bytes that one device holds of a tree of arrays placed by `shardings`."""
    sizes = jax.tree.map(
        lambda leaf, sharding: int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize,
        tree,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))
