"""Seconds of what is measured, and the ceilings of the machine that it is measured on."""

import statistics
import time
from collections.abc import Callable


def seconds(run: Callable[[], object], *, steps: int, repeats: int, warm: int = 2) -> list[float]:
    """Seconds of one step, measured `repeats` times over `steps` steps each.

    Args:
      run: `run(n)` does n steps and returns when the device has done them.
      warm: steps that are not counted, before the first.
    """
    run(warm)
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run(steps)
        taken.append((time.perf_counter() - began) / steps)
    return taken


def summary(taken: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(taken), "min": min(taken), "max": max(taken), "n": len(taken)}


def ratio(first: list[float], second: list[float]) -> dict[str, float]:
    """How many times as long the second takes: of the medians, and the least and most that single measurements give."""
    return {
        "median": statistics.median(second) / statistics.median(first),
        "min": min(second) / max(first),
        "max": max(second) / min(first),
    }


def ceilings(*, small: bool) -> dict[str, float]:
    """flop/s of a large bfloat16 matrix product (float32 on a CPU) and byte/s, read and written, of a large copy, in JAX."""
    import jax
    import jax.numpy as jnp

    on_cpu = jax.default_backend() == "cpu"
    size = 512 if small else 2048 if on_cpu else 8192
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.float32 if on_cpu else jnp.bfloat16)
    product = jax.jit(lambda x, y: x @ y)
    count = (1 if small else 32) * 2**20 if on_cpu else 2**30
    long = jax.random.normal(jax.random.key(1), (count,), jnp.float32)
    copy = jax.jit(lambda x: x + 1)

    def repeat(function, *operands):
        def run(steps):
            for _ in range(steps):
                out = function(*operands)
            out.block_until_ready()

        return min(seconds(run, steps=8, repeats=4))

    return {
        "matmul_flops": 2 * size**3 / repeat(product, x, x),
        "copy_bytes": 8 * count / repeat(copy, long),
    }
