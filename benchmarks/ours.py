"""Our side of the comparisons: the public configurations, their training step compiled as `train` compiles it."""

import contextlib
import dataclasses
import math
import runpy
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.workloads import Workload

ROOT = Path(__file__).parents[1]
# Tokens drawn by a call of the sampler: a row of pixels, as the command has it.
LION = {"name": "lion", "lr": 1e-4, "weight_decay": 0.1}


def make_run(workload: Workload, fields: dict[str, Any]):
    """(the run, the shapes of a batch) of a workload on the first device; its data need not be here."""
    from crate_jax.planning.compile import describe
    from crate_jax.runs import config as configs

    file, _, variant = workload.config.partition(":")
    described = runpy.run_path(str(ROOT / file))["get_config"](variant).to_dict()
    changed = {**dict(workload.model), **fields}
    described["deterministic"] = changed.pop("deterministic", False)
    changed.setdefault("dtype", "float32" if jax.default_backend() == "cpu" else "bfloat16")
    described["model"] |= changed
    described["optimizer"] |= LION
    described["batch_size"] = workload.batch
    overrides = {f"model.{name}" for name in changed}
    if "image_size" in changed:
        described["data"] |= {"image_size": changed["image_size"]}
    if "num_positions" in changed:
        described["data"] |= {"image_size": math.isqrt(changed["num_positions"])}
    return describe(configs.from_config_dict(described, overrides), overrides, jax.devices()[:1])


class Training:
    """A compiled step and what it needs. Made in two parts, so that several may compile at once."""

    def __init__(self, workload: Workload, fields: dict[str, Any]):
        from crate_jax.training import optim, program

        self.workload = workload
        self.run, self.batch = make_run(workload, fields)
        optimizer = self.run.config.optimizer
        schedule = optim.make_schedule(optimizer, warmup_steps=0, total_steps=10**6)
        self.tx = optim.make_optimizer(optimizer, schedule)
        with jax.set_mesh(self.run.mesh):
            self.abstract, self.lowered = program.lower(self.run, self.tx, self.batch, log_steps=1)
        self.flops = program.matmul_flops(self.run, self.abstract.params, self.batch)

    def compile(self) -> float:
        """Seconds."""
        began = time.perf_counter()
        self.step = self.lowered.compile()
        self.lowered = None
        return time.perf_counter() - began

    def measure(self, *, steps: int, repeats: int) -> dict[str, Any]:
        """Seconds of a step, the device's memory, the bytes that the compiled program moves, the last loss."""
        from crate_jax.parallel.sharding import shard_batch
        from crate_jax.planning import traffic
        from crate_jax.training import state

        size = self.run.config.batch_size
        rng = np.random.default_rng(0)
        batch = {}
        for name, shape in self.batch.items():
            high = 10 if name == "label" else 256
            batch[name] = rng.integers(0, high, (size, *shape.shape[1:])).astype(shape.dtype)
        with jax.set_mesh(self.run.mesh):
            batch = shard_batch(batch, self.run.mesh)
            current = state.make_state(self.run.model, self.tx, jax.random.key(0), self.abstract)
            first = None

            def run(count):
                nonlocal current, first
                for _ in range(count):
                    current, report = self.step(current, batch)
                    first = report if first is None else first
                jax.block_until_ready(report)
                return report

            taken = timing.seconds(run, steps=steps, repeats=repeats)
            last = float(run(1)["sums"]["loss"])
        memory = self.step.memory_analysis()
        return {
            "seconds": taken,
            "temp_bytes": memory.temp_size_in_bytes,
            "moved_bytes": traffic.moved(self.step.as_text()).bytes,
            "matmul_flops": self.flops,
            "losses": [float(first["sums"]["loss"]), last],
        }


class Sampling:
    """Drawing whole images, a row of pixels a call."""

    def __init__(self, workload: Workload, fields: dict[str, Any]):
        from crate_jax.models import sampling

        self.workload, self.sampling = workload, sampling
        self.run_, _ = make_run(workload, fields)
        self.model = self.run_.model
        self.positions = self.model.config.num_positions
        self.row = math.isqrt(self.positions)

    def compile(self) -> float:
        """Seconds of the first whole drawing, compilations included."""
        self.params = jax.jit(self.model.init)(jax.random.key(0))
        self.sampler = self.sampling.make_sampler(self.model, self.row, self.sampling.SamplingParams())
        self.keys = jax.random.split(jax.random.key(1), self.workload.batch)
        self.prompt = jnp.zeros((self.workload.batch, self.positions), jnp.int32)
        began = time.perf_counter()
        self.draw(1)
        return time.perf_counter() - began

    def draw(self, count: int) -> None:
        """`count` whole batches of images."""
        for _ in range(count):
            state = self.sampling.start(self.model, self.workload.batch)
            for _ in range(self.positions // self.row):
                state, tokens = self.sampler(self.params, state, self.prompt, 0, self.keys)
            tokens.block_until_ready()

    def measure(self, *, steps: int, repeats: int) -> dict[str, Any]:
        """Seconds of a batch of whole images."""
        del steps
        return {"seconds": timing.seconds(self.draw, steps=1, repeats=repeats, warm=1)}


def make(workload: Workload, fields: dict[str, Any]) -> Training | Sampling:
    """Described and lowered, not compiled.

    Raises:
      ValueError: a field that the model does not have.
    """
    fields = dict(fields)
    unit = fields.pop("unit", None)
    known = {field.name for field in dataclasses.fields(make_run(workload, {})[0].config.model)}
    if unknown := set(fields) - known - {"deterministic"}:
        raise ValueError(f"the model has no field {', '.join(sorted(unknown))}")
    with kernels_of(unit):
        return {"train": Training, "sample": Sampling}[workload.kind](workload, fields)


@contextlib.contextmanager
def kernels_of(unit: int | None):
    """While it lasts, kernels that ask for tokens padded to another multiple; None changes nothing."""
    from crate_jax.models import attention

    usual = dict(attention.KERNELS)
    try:
        if unit is not None:
            attention.KERNELS |= {name: kernel._replace(unit=unit) for name, kernel in usual.items()}
        yield
    finally:
        attention.KERNELS |= usual
