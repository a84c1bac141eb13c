"""Machines by name, as devices that a program can be compiled for without having them."""

import importlib.util
import math
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from crate_jax import InputError
from crate_jax.parallel.chips import CHIPS, Chip

# Sides of a machine: those of a TPU's grid, or one, the number of GPUs.
DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "a100": 1, "h100": 1}
ACCEPTED = (
    "v4:2x2x4, v5e:16x16, v5p:4x4x4, v6e:8x8 (chips along each side), a100:8 or h100:64 (GPUs, 8 per node)"
)
GPUS_PER_NODE = 8


def _gpu(
    name: str,
    capability: int,
    *,
    cores: int,
    lanes: int,
    shared: int,
    memory: int,
    rate: int,
    l2: int,
    ghz: float,
):
    """What XLA must know of a GPU to compile for it, as the text of its GpuTargetConfigProto.

    Args:
      name: as the driver reports it. capability: of CUDA, the major number.
      cores, lanes: streaming multiprocessors, and float32 units of one. ghz: their clock.
      shared: bytes of shared memory per multiprocessor, of which a block gets all but 1,024.
      memory, l2: bytes. rate: bytes per second of the memory.
    """
    return f"""
platform_name: "CUDA"
device_description_str: "{name}"
dnn_version_info {{ major: 9 minor: 8 }}
gpu_device_info {{
  cuda_compute_capability {{ major: {capability} }}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  core_count: {cores} fpus_per_core: {lanes} clock_rate_ghz: {ghz}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared - 1024} shared_memory_per_core: {shared}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  device_memory_size: {memory} memory_bandwidth: {rate} l2_cache_size: {l2}
}}
"""


A100 = _gpu(
    "NVIDIA A100-SXM4-80GB",
    8,
    cores=108,
    lanes=64,
    ghz=1.41,
    shared=167_936,
    memory=85_095_874_560,
    rate=2_039_000_000_000,
    l2=41_943_040,
)
H100 = _gpu(
    "NVIDIA H100 80GB HBM3",
    9,
    cores=132,
    lanes=128,
    ghz=1.98,
    shared=233_472,
    memory=84_978_434_048,
    rate=3_352_320_000_000,
    l2=52_428_800,
)
GPUS = {"a100": A100, "h100": H100}


class Topology(NamedTuple):
    """A machine: `kind` is a key of DIMENSIONS, `shape` its chips along each side, `slices` how many of them."""

    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """What one device is."""
        return CHIPS[self.kind]

    @property
    def num_devices(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    def __str__(self) -> str:
        name = f"{self.kind}:{'x'.join(map(str, self.shape))}"
        return f"{self.slices} × {name}" if self.slices > 1 else name


def parse(name: str, slices: int = 1) -> Topology:
    """`v5e:16x16` or `h100:64` as a Topology.

    Raises:
      InputError: a machine that is not known, or a shape that it cannot have.
    """
    kind, _, text = name.partition(":")
    shape = tuple(map(int, text.split("x"))) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text) else ()
    if len(shape) != DIMENSIONS.get(kind):
        raise InputError(f"--topology: found {name!r}; accepted: {ACCEPTED}")
    if kind in GPUS:
        if slices > 1:
            raise InputError(f"--slices: GPUs have none; give their whole number, --topology={kind}:64")
        if shape[0] > GPUS_PER_NODE and shape[0] % GPUS_PER_NODE:
            raise InputError(f"--topology: found {name!r}; accepted: up to 8 GPUs, or whole nodes of 8")
    if slices < 1:
        raise InputError(f"--slices: found {slices}; accepted: 1 or more")
    return Topology(kind, shape, slices)


def check_compiler(topology: Topology) -> None:
    """Raises InputError with the line that installs the compiler for this machine, unless it is there."""
    if topology.kind not in GPUS:
        if importlib.util.find_spec("libtpu") is None:
            raise InputError("plan: no TPU compiler here; install it with: pip install 'jax[tpu]'")
    elif importlib.util.find_spec("jax_cuda13_plugin") is None:
        version = jax.__version__
        raise InputError(
            "plan: no CUDA compiler here; install it with: "
            f"pip install --no-deps jax-cuda13-pjrt=={version} jax-cuda13-plugin=={version}"
        )


def devices(topology: Topology) -> list:
    """The described devices. To be called in a process whose own backend is the CPU.

    Raises:
      InputError: a shape that the compiler does not know.
    """
    if topology.kind in GPUS:
        count = topology.shape[0]
        nodes = max(1, count // GPUS_PER_NODE)
        options = {"topology": f"1x{nodes}x{count // nodes}", "target_config": GPUS[topology.kind]}
        return topologies.get_topology_desc(platform="cuda", topology_name="", **options).devices
    options = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.kind == "v4":
        options["chip_config_name"] = "megacore"
    name = f"{topology.kind}:{'x'.join(map(str, topology.shape))}"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except jax.errors.JaxRuntimeError as error:
        first = str(error).splitlines()[0]
        raise InputError(f"--topology: {name} is none that the TPU compiler knows ({first})") from None
