"""What tests of whole runs share."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Before any test starts a backend: on two cores XLA's CPU pool is too small for batched factorisations that run at once.
os.environ.setdefault("PJRT_NPROC", "4")
# Tests compile much and run little: code that LLVM hardly optimises halves their time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# And what one test or process has compiled, the next one need not.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# The digits configuration, shrunk: one small layer pair, a few dozen steps.
TINY = {
    "model.dim": 16,
    "model.depth": 2,
    "model.heads": 2,
    "model.head_dim": 8,
    "batch_size": 32,
    "total_steps": 30,
    "log_steps": 5,
    "eval_steps": 10,
    "checkpoint_steps": 10,
    "trace_steps": 15,
}
WALL_CLOCK = (
    "seconds",
    "train/examples_per_second",
    "train/data_wait_fraction",
    "train/model_flops_utilization",
)


def slow_but(values, *kept):
    """The values of a parameter, all but those kept marked slow."""

    def slow(value):
        return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)

    return [value if value in kept else slow(value) for value in values]


def command(name: str, *flags: str, **config) -> list[str]:
    """The command line of a crate_jax command; `config` becomes --config.KEY=VALUE. A training draws its losses alone: the
    sections of the report have tests of their own.
    """
    flags = (*flags, "--sections=loss") if name == "train" else flags
    overrides = [f"--config.{key}={value}" for key, value in config.items()]
    return [sys.executable, "-m", f"crate_jax.{name}", *flags, *overrides]


def environment(devices: int = 1) -> dict[str, str]:
    """CPU only, with forced host devices; PJRT needs threads for all of them or their collectives deadlock."""
    out = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    out["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    out["PJRT_NPROC"] = str(4 * devices)
    return out


def run(arguments: list[str], *, devices: int = 1, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run to the end, in the checkout's root."""
    return subprocess.run(
        arguments,
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pytest_collection_modifyitems(items):
    """The longest test first: last, it would run alone."""
    items.sort(key=lambda item: item.path.name != "test_kills.py")


@pytest.fixture
def started():
    """Processes, each of a session of its own, that end with the test whatever it finds."""
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in WALL_CLOCK} for line in lines]


@pytest.fixture
def tiny_flags() -> list[str]:
    return ["--config=configs/base.py", *(f"--config.{key}={value}" for key, value in TINY.items())]


@pytest.fixture
def tiny_config():
    """The shrunk digits configuration, for runs inside the test's own process."""
    return load_config(TINY)


@pytest.fixture
def compile_once(tmp_path):
    """The second start of a run finds what the first one compiled."""
    import jax

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path / "compiled"), 0.0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def optimized():
    """Code as users run it, for a test that runs long."""
    import jax

    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def load_config(changes: dict, file: str = "configs/base.py", variant: str | None = None):
    """A config file with changes, as the command line would make it."""
    from ml_collections import config_flags  # noqa: F401  (the loader below is the flag's own)

    from crate_jax.runs.config import from_config_dict, with_optimizer

    namespace: dict = {}
    exec(compile((ROOT / file).read_text(), file, "exec"), namespace)
    config = namespace["get_config"](*([variant] if variant else []))
    with_optimizer(config, [f"--config.{key}={value}" for key, value in changes.items()])
    config.update_from_flattened_dict(changes)
    return from_config_dict(config, set(changes))
