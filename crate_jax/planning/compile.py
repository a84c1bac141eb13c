"""One training step compiled for one machine, in a process of its own: a crash of the compiler must not take more with it.

    python -m crate_jax.planning.compile < REQUEST.json

prints a line of JSON: the fields of `Plan`, or `{"error": …}`.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from crate_jax import InputError

# Of the memory that a GPU has, a program gets so much: launch/slurm.sbatch and launch/sky.yaml ask for it, where JAX would
# take 75 %. Of a TPU's the compiler itself knows.
GPU_SHARE = 0.92
# Kinds of instruction that are listed with the bytes they move.
LARGEST = 10
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_ACCELERATOR_TYPE": "none",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step needs. Bytes are those of one device, flops those of a step on all of them.

    `peak_bytes` of a step that does not fit is the compiler's own account; its parts, and what it would move, are then not
    known (None). `moved_bytes` is what a device reads from and writes to its memory, `moved_by` the kinds of instruction
    that move most: (kind, how often it runs, bytes). `memory_seconds` and `matmul_seconds` are the times that this traffic
    and the matrix products take at the chip's rates, `measured` or `published`: no step is faster than the longer one.
    """

    topology: str
    mesh: dict[str, int]
    batch_size: int
    remat: str
    num_params: int
    num_devices: int
    fits: bool
    hbm_bytes: int
    peak_bytes: int | None
    argument_bytes: int | None
    temp_bytes: int | None
    params_bytes: int
    optimizer_bytes: int
    collectives: dict[str, dict[str, int]]
    flops_per_step: int
    moved_bytes: int | None
    moved_by: list[tuple[str, int, int]]
    matmul_seconds: float
    memory_seconds: float | None
    rates: str
    compile_seconds: float


def in_subprocess(
    config: dict[str, Any],
    overrides: Collection[str],
    topology: str,
    slices: int = 1,
    program: Path | None = None,
) -> Plan:
    """Compile in a process of its own.

    Args:
      config: the configuration, as `to_config_dict(config).to_dict()` without its Nones.
      overrides: dotted keys that the user set.
      topology: as `topology.parse` takes it.
      slices: of them.
      program: a file that the compiled program is written to as text.
    Raises:
      InputError: what the configuration or the machine forbids, or a crash of the compiler.
    """
    request = {"config": config, "overrides": sorted(overrides), "topology": topology, "slices": slices}
    request["program"] = program and str(program.absolute())
    done = subprocess.run(
        [sys.executable, "-m", "crate_jax.planning.compile"],
        input=json.dumps(request),
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"plan: the compiler for {topology} ended with exit code {done.returncode}: {why}")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise InputError(answer["error"])
    return Plan(**answer)


def plan(request: dict[str, Any]) -> Plan:
    """Compile the step that a request describes; see `in_subprocess`."""
    import jax

    from crate_jax.parallel import sharding
    from crate_jax.planning import hlo, traffic
    from crate_jax.planning import topology as topologies
    from crate_jax.runs import config as configs
    from crate_jax.runs.metrics import write_atomically
    from crate_jax.training import optim, program, state

    machine = topologies.parse(request["topology"], request["slices"])
    config = configs.from_config_dict(request["config"], set(request["overrides"]))
    run, batch = describe(config, request["overrides"], topologies.devices(machine))
    config = run.config
    schedule = optim.make_schedule(config.optimizer, warmup_steps=1, total_steps=2, steps_per_epoch=1)
    tx = optim.make_optimizer(config.optimizer, schedule, total_steps=2)
    with jax.set_mesh(run.mesh):
        abstract, lowered = program.lower(run, tx, batch, log_steps=1)
        began = time.perf_counter()
        memory, text, peak = None, "", None
        try:
            compiled = _compile(lowered, machine)
            memory, text, peak = compiled.memory_analysis(), compiled.as_text(), program.peak_bytes(compiled)
        except jax.errors.JaxRuntimeError as error:
            if error.error_code_string != "RESOURCE_EXHAUSTED":
                raise
            peak = _used_bytes(str(error))
        seconds = time.perf_counter() - began
    if text and request.get("program"):
        write_atomically(Path(request["program"]), text.encode())
    shardings = state.shardings_of(abstract)
    held = {
        name: sharding.bytes_per_device(getattr(abstract, name), getattr(shardings, name))
        for name in ("params", "opt_state")
    }
    count = program.matmul_flops(run, abstract.params, batch)
    chip, on_gpu = machine.chip, machine.kind in topologies.GPUS
    limit = chip.hbm_bytes * (GPU_SHARE if on_gpu else 1)
    moved = traffic.moved(text, on_chip=not on_gpu) if text else None
    return Plan(
        topology=str(machine),
        mesh=dict(run.mesh.shape),
        batch_size=config.batch_size,
        remat=getattr(config.model, "remat", "none"),
        num_params=run.model.num_params,
        num_devices=machine.num_devices,
        fits=memory is not None and peak <= limit,
        hbm_bytes=chip.hbm_bytes,
        peak_bytes=peak,
        argument_bytes=memory and memory.argument_size_in_bytes,
        temp_bytes=memory and memory.temp_size_in_bytes,
        params_bytes=held["params"],
        optimizer_bytes=held["opt_state"],
        collectives={kind: found._asdict() for kind, found in hlo.collectives(text).items()} if text else {},
        flops_per_step=count,
        moved_bytes=moved and moved.bytes,
        moved_by=moved.kinds[:LARGEST] if moved else [],
        matmul_seconds=count / (machine.num_devices * chip.reachable_flops),
        memory_seconds=moved and moved.bytes / chip.reachable_bandwidth,
        rates=chip.rates_are,
        compile_seconds=seconds,
    )


def describe(config, overrides: Collection[str], devices: list):
    """The run of a configuration on described devices, and the shapes of its batch. The data need not be here.

    Data that lie here are looked at, for the size of their images and their classes; for others (`tfds:`, a folder that is
    elsewhere) these are what the configuration names. Nothing is downloaded.
    """
    import jax
    import numpy as np

    from crate_jax.runs.config import fit_to_data
    from crate_jax.tasks import crops_of
    from crate_jax.training.building import build, needs_palette, with_palette

    info = _dataset(config)
    config = fit_to_data(config, info, set(overrides))
    info = info.cut(config.model.sequence_length)
    run = build(config, info, Path("plan"), devices=devices)
    if needs_palette(run):
        run = with_palette(run, np.zeros((config.model.vocab_size, 3), np.float32))
    batch = {"index": jax.ShapeDtypeStruct((1,), np.int32)}
    shape = config.data.shape and (*config.data.shape, config.data.channels)
    for name, (sides, kind) in info.example(shape).items():
        batch[name] = jax.ShapeDtypeStruct((1, *sides), kind)
    for name, sides in (crops.shapes if (crops := crops_of(config)) else {}).items():
        batch[name] = jax.ShapeDtypeStruct((1, *sides), np.uint8)
    return run, batch


def _dataset(config):
    from crate_jax.data import sources

    model, data = config.model, config.data
    if not data.name.startswith("tfds:"):
        with contextlib.suppress(InputError):
            return sources.inspect(data.name, data_dir=data.data_dir)
    side = getattr(model, "image_size", None) or math.isqrt(getattr(model, "num_positions", 0))
    return sources.DatasetInfo(
        name=data.name,
        num_examples={"train": 1_281_167, "test": 50_000},
        tokens=sources.SOURCES[data.name.partition(":")[0]].tokens,
        image_size=data.image_size or side,
        channels=data.channels or getattr(model, "channels", 3),
        num_classes=getattr(model, "num_classes", 0) or 1000,
        max_value=255,
    )


def _compile(lowered, machine):
    """Compiled for the machine.

    Where XLA's Triton kernels have no tiling for a matrix product it fails; on a card it would have tried cuBLAS too, and
    here, where it cannot try, it is told to take cuBLAS for all.
    """
    import jax

    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "tile sizes" not in str(error):
            raise
    print(
        f"plan: no Triton tiling for a matrix product on {machine}; compiled with cuBLAS alone",
        file=sys.stderr,
    )
    return lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False})


def _used_bytes(message: str) -> int | None:
    """`Used 31.20G of 15.75G hbm` as bytes; None if the message does not say."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of", message)
    return int(float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1)) if found else None


if __name__ == "__main__":
    # What compilers print belongs to stderr; the answer alone to stdout.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer = dataclasses.asdict(plan(json.load(sys.stdin)))
        except InputError as error:
            answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
    os._exit(0)  # The compilers' own exit handlers may crash.
