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

from benchmarks import profiling, shared_attention, timing
from benchmarks.workloads import Workload

ROOT = Path(__file__).parents[1]
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

    def __init__(self, workload: Workload, fields: dict[str, Any], options: dict[str, Any] | None = None):
        from crate_jax.training import optim, program

        self.workload, self.options = workload, options
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
        self.step = self.lowered.compile(compiler_options=self.options)
        self.lowered = None
        return time.perf_counter() - began

    def start(self) -> None:
        """A state and random images or tokens, on the device."""
        from crate_jax.parallel.sharding import shard_batch
        from crate_jax.training import state

        size, rng = self.run.config.batch_size, np.random.default_rng(0)
        batch = {}
        for name, shape in self.batch.items():
            high = 10 if name == "label" else 256
            batch[name] = rng.integers(0, high, (size, *shape.shape[1:])).astype(shape.dtype)
        with jax.set_mesh(self.run.mesh):
            self.examples = shard_batch(batch, self.run.mesh)
            self.state = state.make_state(self.run.model, self.tx, jax.random.key(0), self.abstract)

    def steps(self, count: int) -> float:
        """The loss of the last of `count` steps, done when this returns."""
        with jax.set_mesh(self.run.mesh):
            for _ in range(count):
                self.state, report = self.step(self.state, self.examples)
            return float(report["sums"]["loss"])

    def measure(self, *, steps: int, repeats: int) -> dict[str, Any]:
        """Seconds of a step, the device's memory, the bytes that the compiled program moves, the first and the last loss."""
        from crate_jax.planning import traffic

        self.start()
        first = self.steps(1)
        taken = timing.seconds(self.steps, steps=steps, repeats=repeats)
        return {
            "seconds": taken,
            "temp_bytes": self.step.memory_analysis().temp_size_in_bytes,
            "moved_bytes": traffic.moved(self.step.as_text()).bytes,
            "matmul_flops": self.flops,
            "losses": [first, self.steps(1)],
        }

    def profile(self) -> dict[str, Any]:
        """Where the time of a step goes; after `measure`."""
        return profiling.kernels(self.steps, 3)


class Sampling:
    """Drawing whole images, a row of pixels a call."""

    def __init__(self, workload: Workload, fields: dict[str, Any], options: dict[str, Any] | None = None):
        from crate_jax.models import decoding, sampling

        self.workload = workload
        self.model = make_run(workload, fields)[0].model
        self.positions = self.model.config.num_positions
        self.row = math.isqrt(self.positions)
        self.params = jax.jit(self.model.init)(jax.random.key(0))
        self.prompt = jnp.zeros((workload.batch, self.positions), jnp.int32)
        self.keys = jax.random.split(jax.random.key(1), workload.batch)
        self.first = lambda: sampling.start(self.model, workload.batch)
        rooms = decoding.rooms(self.model, self.row)
        program = sampling.make_program(self.model, self.row, sampling.SamplingParams(), rooms)
        self.lowered, self.options = program.lower(self.params, *self._inputs(self.first())), options

    def _inputs(self, state):
        return state.previous, state.cache, np.int32(state.position), self.prompt, np.int32(0), self.keys

    def compile(self) -> float:
        """Seconds."""
        began = time.perf_counter()
        self.step = self.lowered.compile(compiler_options=self.options)
        self.lowered = None
        return time.perf_counter() - began

    def rows(self, state, count: int):
        """The state after `count` rows more."""
        for _ in range(count):
            previous, cache, tokens = self.step(self.params, *self._inputs(state))
            state = state._replace(position=state.position + self.row, previous=previous, cache=cache)
        tokens.block_until_ready()
        return state

    def draw(self, count: int) -> None:
        """`count` batches of whole images."""
        for _ in range(count):
            self.rows(self.first(), self.positions // self.row)

    def measure(self, *, steps: int, repeats: int) -> dict[str, Any]:
        """Seconds of a batch of whole images."""
        del steps
        return {"seconds": timing.seconds(self.draw, steps=1, repeats=repeats, warm=1)}

    def profile(self) -> dict[str, Any]:
        """Where the time of a token goes, in the middle of the images."""
        state = self.rows(self.first(), self.positions // self.row // 2)
        return profiling.kernels(lambda count: self.rows(state, count // self.row), self.row)


def make(workload: Workload, fields: dict[str, Any]) -> Training | Sampling:
    """Described and lowered, not compiled.

    Raises:
      ValueError: a field that the model does not have.
    """
    fields = dict(fields)
    unit, options = fields.pop("unit", None), fields.pop("compiler_options", None)
    shared = fields.pop("shared_attention", False)
    known = {field.name for field in dataclasses.fields(make_run(workload, {})[0].config.model)}
    if unknown := set(fields) - known - {"deterministic"}:
        raise ValueError(f"the model has no field {', '.join(sorted(unknown))}")
    with kernels_of(unit, shared):
        return {"train": Training, "sample": Sampling}[workload.kind](workload, fields, options)


@contextlib.contextmanager
def kernels_of(unit: int | None, shared: bool):
    """While it lasts, kernels ask for tokens padded to a multiple of `unit` (None changes nothing), and MSSA's is that in
    `shared_attention` where `shared`.
    """
    from crate_jax.models import attention

    usual = dict(attention.KERNELS)
    changes: dict[str, Any] = {} if unit is None else {"unit": unit}
    if shared:
        changes["attend_shared"] = shared_attention.attend_shared
    try:
        attention.KERNELS |= {name: kernel._replace(**changes) for name, kernel in usual.items()}
        yield
    finally:
        attention.KERNELS |= usual
