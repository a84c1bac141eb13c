"""Every public function gives the same numbers under `jax_enable_x64` and on explicit meshes, and takes empty batches."""

import os
import subprocess
import sys
from pathlib import Path

import calls
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import objectives

HERE = Path(__file__).parent

COMPARE = """
import sys
sys.path.insert(0, {here!r})
import calls, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

given = calls.arrays()
expected = [jax.jit(call)(*(jnp.asarray(given[a]) for a in calls.names(call))) for _, call in calls.EACH]

def check(name, call, want, *arrays):
    got = call(*arrays)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        assert b.dtype == a.dtype, (name, b.dtype)
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=2e-6, err_msg=name)
    return got
"""

X64 = """
jax.config.update("jax_enable_x64", True)
for (name, call), want in zip(calls.EACH, expected):
    single = [jnp.asarray(given[a]) for a in calls.names(call)]
    double = [x.astype(jnp.float64) if x.dtype == jnp.float32 else x for x in single]
    check(name, call, want, *single)
    check(name, jax.jit(call), want, *double)
    grad = jax.grad(lambda x: sum(jnp.sum(y) for y in jax.tree.leaves(call(x, *single[1:]))))
    assert jax.eval_shape(grad, single[0]).dtype == jnp.float32, name
from crate_jax import objectives as o
z = jnp.asarray(given["z"])
for eps_sq in (0.5, np.float64(0.5), jnp.float64(0.5), jnp.float32(0.5)):
    assert o.coding_rate(z, eps_sq=eps_sq).dtype == jnp.float32
    assert o.mssa_step(z, given["bases"], step_size=eps_sq, eps_sq=eps_sq).dtype == jnp.float32
assert o.entropy([0.5, 0.5]).dtype == jnp.float32
print("fine")
"""

EXPLICIT = """
mesh = jax.make_mesh((2,), ("x",))
for (name, call), want in zip(calls.EACH, expected):
    first, *rest = (jnp.asarray(given[a]) for a in calls.names(call))
    for spec in (P("x"), P(None, None, "x")):
        if spec != P("x") and (first.ndim != 3 or name == "mean_and_std"):
            continue
        sharded = jax.device_put(first, NamedSharding(mesh, spec))
        with jax.set_mesh(mesh):
            got = check(name, jax.jit(call), want, sharded, *rest)
        if spec != P("x"):
            continue
        check(name, call, want, sharded, *rest)
        for x in jax.tree.leaves(got):
            if x.ndim and x.shape[0] == first.shape[0]:
                assert x.sharding.spec[0] == "x", (name, x.sharding)
sharded = jax.device_put(jnp.asarray(given["z"]), NamedSharding(mesh, P("x")))
from crate_jax import objectives as o
with jax.set_mesh(mesh):
    slope = jax.jit(jax.grad(lambda z: o.coding_rate(z, eps_sq=0.5).mean()))(sharded)
plain = jax.grad(lambda z: o.coding_rate(z, eps_sq=0.5).mean())(jnp.asarray(given["z"]))
np.testing.assert_allclose(slope, plain, atol=1e-6)
print("fine")
"""


def run(program, devices):
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PJRT_NPROC": str(4 * devices),
        "JAX_PLATFORMS": "cpu",
    }
    text = COMPARE.format(here=str(HERE)) + program
    done = subprocess.run(
        [sys.executable, "-c", text], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "fine"


@pytest.mark.slow
@pytest.mark.parametrize(("program", "devices"), [(X64, 1), (EXPLICIT, 2)], ids=["x64", "explicit mesh"])
def test_the_same_numbers(program, devices):
    run(program, devices)


def test_every_public_function_is_called():
    assert set(calls.CALLS) == set(objectives.__all__) - {"StepAgreement"}


@pytest.mark.parametrize(("batch", "tokens"), [(0, calls.N), (calls.B, 0)])
@pytest.mark.parametrize(("name", "call"), calls.EACH)
def test_empty_batches(name, call, batch, tokens):
    given = calls.arrays(batch, tokens)
    full = jax.eval_shape(call, *(jnp.asarray(calls.arrays()[a]) for a in calls.names(call)))
    result = call(*(jnp.asarray(given[a]) for a in calls.names(call)))
    sizes = {calls.B: batch, calls.N: tokens}
    for x, wanted in zip(jax.tree.leaves(result), jax.tree.leaves(full), strict=True):
        assert x.shape == tuple(sizes.get(size, size) for size in wanted.shape)
        if name not in ("mean_and_std", "step_agreement"):  # of no values, beside a step of length 0
            assert np.all(np.isfinite(x))
