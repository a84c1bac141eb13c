"""The mesh, the rules, and that many devices compute what one does."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from conftest import run
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from crate_jax import InputError, models
from crate_jax.training import optim, sharding, state
from crate_jax.training.config import MeshConfig, OptimizerConfig


def abstract_mesh(data=1, fsdp=1, tensor=1):
    return AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


@pytest.mark.slow
def test_eight_devices_agree_with_one():
    script = Path(__file__).with_name("mesh_agreement.py")
    done = run([sys.executable, str(script)], devices=8)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report) == 3
    for mesh, result in report.items():
        assert result["same_examples"], mesh
        assert result["gradient_error"] <= 1e-5, (mesh, result)
        assert result["loss_error"] <= 1e-5, (mesh, result)
    assert report["8×1×1"]["sharded_params"] == 0
    assert report["4×2×1"]["sharded_params"] > 0


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
@pytest.mark.parametrize("optimizer", ["lion", "adamw", "sgd"])
def test_every_large_array_of_the_state_is_sharded(size, optimizer):
    model = models.create(models.crate(size))
    tx = optim.make_optimizer(OptimizerConfig(name=optimizer), lambda step: 1e-3)
    abstract = jax.eval_shape(
        lambda key: state.init_state(model, tx, key, ema=True, metric_names=("loss",)), jax.random.key(0)
    )
    mesh = abstract_mesh(data=2, fsdp=4, tensor=2)
    held = sharding.bytes_per_device(abstract, sharding.tree_shardings(abstract, mesh))
    whole = sharding.bytes_per_device(abstract, sharding.tree_shardings(abstract, abstract_mesh()))
    assert held < 1.02 * whole / 4


def test_moments_are_placed_like_their_parameters():
    mesh = abstract_mesh(fsdp=2, tensor=2)
    shape = (12, 6, 384, 64)
    expected = PartitionSpec(None, "tensor", "fsdp", None)
    for path in ("params/blocks/blocks/mssa/bases", "opt_state/1/0/mu/blocks/blocks/mssa/bases"):
        assert sharding.spec_for(path, shape, 4, mesh) == expected


def test_a_large_array_without_a_rule_is_an_error():
    with pytest.raises(InputError, match="no rule matches blocks/new/weight"):
        sharding.spec_for("blocks/new/weight", (1024, 1024), 4, abstract_mesh(fsdp=2))
    assert sharding.spec_for("blocks/new/scale", (1024,), 4, abstract_mesh(fsdp=2)) == PartitionSpec()


def test_sizes_that_do_not_divide_the_mesh():
    with pytest.raises(
        InputError, match="dimension 1 of blocks/mssa/bases, 6 long, does not divide over tensor=4"
    ):
        sharding.spec_for("blocks/mssa/bases", (12, 6, 384, 64), 4, abstract_mesh(tensor=4))
    # A small array drops the axis instead.
    assert sharding.spec_for("head/kernel", (384, 10), 4, abstract_mesh(tensor=4)) == PartitionSpec(
        "fsdp", None
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=3), "mesh: found data=3×fsdp=1×tensor=1 for 1 devices"),
        (MeshConfig(data=-1, fsdp=-1), "at most one of them -1"),
        (MeshConfig(data=0), "accepted: sizes ≥ 1"),
    ],
)
def test_impossible_meshes(config, message):
    with pytest.raises(InputError, match=message):
        sharding.make_mesh(config, jax.devices()[:1])


def test_gradient_accumulation_is_the_large_batch(tiny_config):
    from functools import partial

    from crate_jax.training import steps
    from crate_jax.training.run import make_run

    run_ = make_run(tiny_config, Path("unused"))
    params = run_.model.init(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, run_.train_batches().batch(0))
    fn = partial(steps.loss_and_grad, run_.model, run_.task)
    whole, parts = (jax.jit(partial(fn, accumulate=n))(params, batch, jax.random.key(1)) for n in (1, 4))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        assert float(jnp.linalg.norm(a - b)) <= 1e-5 * float(jnp.linalg.norm(a)) + 1e-9
