"""On batch-sharded arrays: the values of one device, at most one all-reduce, and no other collective."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from crate_jax import objectives as o

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
z = jax.random.normal(jax.random.key(0), (16, 10, 6))
z = z.at[3].set(1e5 * jnp.ones((10, 6)))  # one sample on one device takes the accurate path
bases = jax.random.normal(jax.random.key(1), (3, 6, 2))
labels = jax.random.randint(jax.random.key(2), (16, 10), 0, 3)
sharded = jax.device_put(z, NamedSharding(mesh, P("data")))
losses = {
    "coding_rate": lambda z: o.coding_rate(z, eps_sq=0.1).mean(),
    "subspace_coding_rate": lambda z: o.subspace_coding_rate(z, bases, eps_sq=0.1).mean(),
    "rate_reduction": lambda z: o.rate_reduction(z, labels, eps_sq=0.1).mean(),
    "vmapped": lambda z: jax.vmap(lambda x: o.coding_rate(x, eps_sq=0.1))(z).mean(),
    "released": lambda z: o.released_coding_rate(z[:, None]).mean(),
    "ista_step": lambda z: o.ista_step(z, jnp.eye(6), step_size=0.1, penalty=0.1).mean(),
}
for name, loss in losses.items():
    compiled = jax.jit(jax.value_and_grad(loss)).lower(sharded).compile()
    found = re.findall(r" (all-\\w+|reduce-scatter|collective-permute)(?:-start)?\\(", compiled.as_text())
    value, gradient = compiled(sharded)
    expected, slope = jax.value_and_grad(loss)(z)
    np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(gradient, slope, atol=1e-6, err_msg=name)
    assert found in ([], ["all-reduce"]), (name, found)
spec = P("data")
mapped = jax.shard_map(lambda z: o.coding_rate(z, eps_sq=0.1), mesh=mesh, in_specs=spec, out_specs=spec)
np.testing.assert_allclose(jax.jit(mapped)(sharded), o.coding_rate(z, eps_sq=0.1), rtol=1e-6)
# Tokens over devices, as MCR² has them where a batch is one set of samples.
tokens = jax.device_put(z[0, :8], NamedSharding(mesh, P("data")))
rate = jax.jit(lambda z: o.coding_rate(z, eps_sq=0.1)).lower(tokens).compile()
np.testing.assert_allclose(rate(tokens), o.coding_rate(z[0, :8], eps_sq=0.1), rtol=1e-6)
assert len(re.findall(r" all-reduce(?:-start)?\\(", rate.as_text())) <= 1
print("fine")
"""


@pytest.mark.slow
def test_batch_sharding_needs_one_all_reduce():
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "PJRT_NPROC": "32", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip() == "fine"
