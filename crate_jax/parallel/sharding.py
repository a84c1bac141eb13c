"""The mesh, and the placement of parameters, optimiser state, caches and batches on it by `models.partition.RULES`."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from crate_jax import InputError
from crate_jax.models.partition import BATCH_AXES, MAX_REPLICATED_BYTES, axes_for
from crate_jax.settings import one_of, setting

# Devices that share heads and features under fsdp_tp: within one host of every machine we know.
TENSOR = 4

# Preset → devices along (data, fsdp, tensor); -1 is whatever the others leave, "slices" the number of TPU slices, or of
# hosts where there are none.
PRESETS: dict[str, tuple[int | str, int, int]] = {
    "dp": (-1, 1, 1),
    "fsdp": (1, -1, 1),
    "fsdp_tp": (1, -1, TENSOR),
    "hybrid": ("slices", -1, 1),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """A preset, one of `sharding.PRESETS`, and devices along each mesh axis in place of the preset's.

    One axis may be -1: whatever the others leave. If no axis is, `data` is, unless it was given.
    """

    preset: str = setting("dp", "How devices are shared out.", choices=PRESETS)
    data: int | None = setting(
        None, "Devices along the batch; -1: what the other axes leave; left out: the preset's.", least=-1
    )
    fsdp: int | None = setting(None, "Devices that share the batch and the parameters; likewise.", least=-1)
    tensor: int | None = setting(None, "Devices that share heads and features; likewise.", least=-1)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes data, fsdp, tensor over all devices.

    Where there are several TPU slices, the outermost axis that they divide goes over them, so that all others stay within
    a slice.

    Raises:
      InputError: an unknown preset, or axes that do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    one_of("mesh.preset", config.preset, PRESETS)
    slices = len({_slice(device) for device in devices})
    sizes = {}
    for name, size in zip(("data", "fsdp", "tensor"), PRESETS[config.preset], strict=True):
        given = getattr(config, name)
        sizes[name] = given if given is not None else slices if size == "slices" else size
    if -1 not in sizes.values() and config.data is None:
        sizes["data"] = -1
    sizes = _fill(sizes, len(devices))
    shape = tuple(sizes.values())
    if slices == 1 or not hasattr(devices[0], "coords"):
        # Devices are numbered host by host, so the outer axes go over hosts.
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        across = next((i for i, size in enumerate(shape) if size % slices == 0), None)
        if across is None:
            raise InputError(
                f"mesh: {_words(sizes)} has no axis to put {slices} slices on; a multiple of {slices} is needed"
            )
        outer = tuple(slices if i == across else 1 for i in range(3))
        inner = tuple(size // out for size, out in zip(shape, outer, strict=True))
        grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * 3)


def _slice(device: jax.Device) -> int:
    """The TPU slice of a device; elsewhere its host."""
    if hasattr(device, "coords"):
        return getattr(device, "slice_index", 0)
    return device.process_index


def _fill(sizes: dict[str, int], num_devices: int) -> dict[str, int]:
    """The sizes with -1 replaced; raises InputError unless they multiply to the number of devices."""
    found = f"mesh: found {_words(sizes)} for {num_devices} devices"
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise InputError(f"{found}; accepted: sizes ≥ 1, at most one of them -1")
    left = num_devices
    for name, size in sizes.items():
        if size != -1:
            if left % size:
                raise InputError(
                    f"{found}; {name}={size} does not divide {left}, nearest sizes that work: {nearest_divisors(left, size)}"
                )
            left //= size
    if not free and left > 1:
        raise InputError(f"{found}; {left} times too few: make one axis larger or -1")
    return {name: left if size == -1 else size for name, size in sizes.items()}


def _words(sizes: dict[str, int]) -> str:
    return "×".join(f"{name}={size}" for name, size in sizes.items())


def nearest_divisors(number: int, size: int) -> str:
    """The divisors of `number` next to `size`, in words."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    near = [*[d for d in divisors if d < size][-1:], *[d for d in divisors if d > size][:1]]
    return ", ".join(str(d) for d in near)


def spec_for(path: str, shape: tuple[int, ...], itemsize: int, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The partition of one array by the first rule that matches its path.

    An axis that does not divide its dimension is dropped for small arrays.

    Raises:
      InputError: an array above MAX_REPLICATED_BYTES that matches no rule or does not divide the mesh.
    """
    large = int(np.prod(shape)) * itemsize > MAX_REPLICATED_BYTES
    axes = axes_for(path, len(shape))
    if axes is None:
        if large:
            raise InputError(
                f"sharding: no rule matches {path} {shape}, which is above 1 MiB; add one to models.partition.RULES"
            )
        return PartitionSpec()
    dims = list(axes)
    for i, axis in enumerate(dims):
        size = axis_size(mesh, axis)
        if shape[i] % size:
            if large:
                name = axis if isinstance(axis, str) else "×".join(axis)
                raise InputError(
                    f"mesh: dimension {i} of {path}, {shape[i]} long, does not divide over {name}={size}; "
                    f"nearest sizes that work: {nearest_divisors(shape[i], size)}"
                )
            dims[i] = None
    return PartitionSpec(*dims)


def axis_size(mesh: Mesh | AbstractMesh, axis: str | tuple[str, ...] | None) -> int:
    """Devices along an axis of the mesh, or several of them together."""
    names = () if axis is None else (axis,) if isinstance(axis, str) else axis
    return int(np.prod([mesh.shape[name] for name in names], dtype=int))


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Parts that a batch is cut into."""
    return axis_size(mesh, BATCH_AXES)


def tree_shardings(tree, mesh: Mesh | AbstractMesh, prefix: str = ""):
    """A NamedSharding for each leaf of a tree of arrays or abstract arrays, by its path after `prefix`."""

    def one(path, leaf):
        name = prefix + jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, spec_for(name, leaf.shape, leaf.dtype.itemsize, mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches: the leading axis over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(*axes_for("batch/", 1)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises InputError unless every device gets the same number of examples in every accumulation step."""
    shards = batch_shards(mesh)
    unit = shards * accumulate
    if accumulate < 1 or batch_size < 1 or batch_size % unit:
        below = max(1, batch_size // unit) * unit if unit > 0 else 0
        raise InputError(
            f"batch_size: {batch_size} does not divide over data×fsdp = {shards} devices × accumulate = {accumulate}; "
            f"nearest sizes that work: {below}, {below + unit}"
        )


def batch_part(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """Which part of every global batch a process reads, as (index, number of parts).

    Processes that hold the same rows (the tensor axis goes over hosts) read the same part. A process's rows need not lie
    beside one another: on a TPU the mesh follows the wires, and the parts are then put into the global batch in that order.

    Args:
      mesh: that of the run.
      process: its index; this one by default.
    Raises:
      InputError: a mesh that cuts the batch across hosts unevenly.
    """
    process = jax.process_index() if process is None else process
    rows: dict[int, set[int]] = {}
    for row, devices in enumerate(mesh.devices.reshape(batch_shards(mesh), -1)):
        for device in devices:
            rows.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(mine)) for mine in rows.values()})
    if sum(map(len, parts)) != batch_shards(mesh):
        raise InputError(
            f"mesh: {_words(dict(mesh.shape))} cuts the batch across hosts unevenly; make tensor a divisor or a multiple of "
            "a host's devices"
        )
    return parts.index(tuple(sorted(rows[process]))), len(parts)


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
