"""What is read off a compiled program, the count of flops, the names of machines, and what a search tries."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, load_config

from crate_jax import InputError, plan
from crate_jax.parallel import flops
from crate_jax.planning import hlo, topology
from crate_jax.planning.compile import Plan, _used_bytes, describe
from crate_jax.training import steps

# As XLA writes it: a loop of 12 rounds, as stated, with a gather in it; one of 5, as its condition says, with a gather cut
# into two fusions; a reduction of two arrays.
HLO = """HloModule step, entry_computation_layout={()->f32[]}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (arg: (s32[], f32[16])) -> (s32[], f32[16]) {
  %ag = (f32[16]{0}, f32[64]{0:T(128)}) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  %agd = f32[64]{0} all-gather-done(%ag)
  %cp = (bf16[8]{0}, bf16[8]{0}, u32[], u32[]) collective-permute-start(%y), source_target_pairs={{0,1}}
  ROOT %t = (s32[], f32[16]) tuple(%i, %x)
}

%condition (arg: (s32[], f32[16])) -> pred[] {
  %n.1 = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %n.1), direction=LT, metadata={}
}

%start (x: bf16[8]) -> bf16[32] {
  %g.1 = bf16[32]{0} all-gather(%x), channel_id=7, dimensions={0}
  ROOT %s = bf16[32]{0} custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%done (x: bf16[8]) -> bf16[32] {
  %g.2 = bf16[32]{0} all-gather(%x), channel_id=7, dimensions={0}
  ROOT %d = bf16[32]{0} custom-call(%g.2), custom_call_target="AsyncCollectiveDone"
}

%counted (arg: (s32[], f32[16])) -> (s32[], f32[16]) {
  %f1 = bf16[32]{0} fusion(%x), kind=kCustom, calls=%start
  %f2 = bf16[32]{0} fusion(%x), kind=kCustom, calls=%done
  ROOT %t = (s32[], f32[16]) tuple(%i, %x)
}

%unused (x: f32[8]) -> f32[8] {
  ROOT %ar = f32[8]{0} all-reduce(%x), to_apply=%add
}

ENTRY %main (p: f32[16]) -> f32[] {
  %loop = (s32[], f32[16]) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %second = (s32[], f32[16]) while(%init), condition=%condition, body=%counted
  %ar = (f32[4,8]{1,0:T(8,128)}, bf16[3]{0}) all-reduce(%g, %h), replica_groups={}, to_apply=%add
  ROOT %r = f32[] constant(0)
}
"""


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    found = hlo.collectives(HLO)
    assert found == {
        "all-gather": (12 + 5, 12 * 64 * 4 + 5 * 32 * 2),
        "collective-permute": (12, 12 * 8 * 2),
        "all-reduce": (1, 4 * 8 * 4 + 3 * 2),
    }


def test_flops_of_a_scanned_layer_and_its_gradient():
    depth, rows, width = 5, 7, 11
    weights = jnp.zeros((depth, width, width))

    def loss(weights, x):
        body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
        return jnp.sum(jax.lax.scan(body, x, weights)[0])

    x = jnp.zeros((rows, width))
    one = 2 * rows * width * width
    assert flops.matmul_flops(loss, weights, x) == depth * one
    # Forward, again forward (rematerialised), and two products backward.
    assert flops.matmul_flops(jax.grad(loss, argnums=(0, 1)), weights, x) == 4 * depth * one


def test_flops_of_a_conditional_are_those_of_its_dearest_branch():
    x = jnp.zeros((4, 4))
    one = 2 * 4**3
    branches = (lambda x: x, lambda x: x @ x @ x, lambda x: x @ x)
    assert flops.matmul_flops(lambda x: jax.lax.switch(1, branches, x) @ x, x) == one + 2 * one
    twice = lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x)  # noqa: E731
    assert flops.matmul_flops(twice, x) == one


@pytest.mark.parametrize("name", ["v4:2x2x4", "v5e:16x16", "v5p:4x4x4", "v6e:8x8", "h100:64", "h100:4"])
def test_machines_by_name(name):
    machine = topology.parse(name)
    assert str(machine) == name
    assert machine.num_devices == np.prod([int(n) for n in name.split(":")[1].split("x")])


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        ("v5e:16", 1, "found 'v5e:16'; accepted: v4:2x2x4"),
        ("v9:2x2", 1, "found 'v9:2x2'"),
        ("v5e:0x4", 1, "found 'v5e:0x4'"),
        ("h100:12", 1, "whole nodes of 8"),
        ("h100:64", 2, "--slices: GPUs have none"),
        ("v5e:4x4", 0, "--slices: found 0"),
    ],
)
def test_machines_that_do_not_exist(name, slices, message):
    with pytest.raises(InputError, match=message):
        topology.parse(name, slices)


def test_the_compiler_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"install it with: pip install 'jax\[tpu\]'"):
        topology.check_compiler(topology.parse("v5e:4x4"))
    with pytest.raises(InputError, match=f"jax-cuda13-plugin=={jax.__version__}"):
        topology.check_compiler(topology.parse("h100:8"))


def test_what_a_step_used_that_did_not_fit():
    assert _used_bytes("RESOURCE_EXHAUSTED: Used 31.50G of 15.75G hbm.") == int(31.5 * 2**30)
    assert _used_bytes("RESOURCE_EXHAUSTED") is None


def test_a_search_finds_the_largest_batch_with_the_least_recomputed():
    """A machine of 100 bytes on which an image takes 8, 4 or 2 by remat policy, and tensor parallelism halves that."""
    machine = topology.parse("v5e:2x2")
    tried = []

    def compiled(config):
        image = {"none": 8, "dots": 4, "full": 2}[config.model.remat]
        tensor = 2 if config.mesh.preset == "fsdp_tp" else 1
        peak = config.batch_size * image // tensor
        tried.append((config.mesh.preset, config.model.remat, config.batch_size))
        return Plan(
            topology=str(machine),
            mesh={"data": 4 // tensor, "fsdp": 1, "tensor": tensor},
            batch_size=config.batch_size,
            remat=config.model.remat,
            num_params=1,
            num_devices=4,
            fits=peak <= 100,
            hbm_bytes=100,
            peak_bytes=peak,
            argument_bytes=0,
            temp_bytes=peak,
            params_bytes=0,
            optimizer_bytes=0,
            collectives={},
            flops_per_step=1,
            moved_bytes=None,
            moved_by=[],
            matmul_seconds=1.0,
            memory_seconds=None,
            rates="published",
            compile_seconds=0.0,
        )

    config = load_config({"batch_size": 16})
    best = max(plan.search(config, machine, compiled), key=plan._worth)
    # 64 images × 2 bytes / 2 = 64 fit, 128 images do not; with dots 64 × 4 / 2 = 128 do not.
    assert (best.batch_size, best.remat, best.mesh["tensor"]) == (64, "full", 2)
    assert len(tried) == len(set(tried)), "nothing is compiled twice"
    assert not any(mesh == "hybrid" for mesh, _, _ in tried)


def test_a_search_prints_one_object_and_refusals_elsewhere(monkeypatch, capsys):
    """Only one mesh can be compiled, then none."""
    accepted = ["dp"]
    fields = {field.name: 0 for field in dataclasses.fields(Plan)}

    def compiled(config, *_):
        if config["mesh"]["preset"] not in accepted:
            raise InputError("mesh: refused")
        return Plan(**{**fields, "remat": "none", "fits": True, "collectives": {}})

    monkeypatch.setattr(plan, "in_subprocess", compiled)
    monkeypatch.setattr(topology, "check_compiler", lambda machine: None)
    monkeypatch.setattr(plan, "DOUBLINGS", 1)
    command = ["plan", f"--config={ROOT / 'configs' / 'base.py'}", "--topology=v5e:2x2", "--search", "--json"]
    plan.main(command)
    out, err = capsys.readouterr()
    assert json.loads(out)["fits"] and "fsdp, none, batch" in err
    accepted.clear()
    with pytest.raises(InputError, match="--search: every candidate was refused"):
        plan.main(command)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("platform", "deterministic", "options", "kernel"),
    [
        ("cuda", True, {"xla_gpu_deterministic_ops": True}, "xla"),
        ("gpu", False, {}, "cudnn"),
        ("cpu", True, {}, "xla_split"),
    ],
)
def test_a_deterministic_run_is_compiled_so_on_a_gpu(platform, deterministic, options, kernel):
    run, _ = describe(load_config({"deterministic": deterministic}), (), jax.devices()[:1])
    device = SimpleNamespace(platform=platform)
    run = dataclasses.replace(run, mesh=SimpleNamespace(devices=np.array([device], object)))
    assert run.compiler_options == options
    assert run.model.resolved.attention_kernel == kernel


@pytest.mark.parametrize("file", sorted(path.stem for path in (ROOT / "configs").glob("*.py")))
def test_a_step_of_every_kind_is_described_without_its_data(file):
    """As far as shapes go: the batch made up for a plan is what the task of the configuration takes."""
    config = load_config({}, f"configs/{file}.py")
    elsewhere = (
        dataclasses.replace(config.data, name="tfds:not_here") if config.task != "autoregressive" else None
    )
    for data in filter(None, (config.data, elsewhere)):
        run, batch = describe(dataclasses.replace(config, data=data), (), jax.devices()[:1])
        whole = {name: jax.ShapeDtypeStruct((8, *x.shape[1:]), x.dtype) for name, x in batch.items()}
        assert "loss" in steps.metric_names(run.model, run.task, whole)
