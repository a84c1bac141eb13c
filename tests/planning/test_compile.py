"""Real steps compiled for a TPU that is not here. Skipped without its compiler (`pip install 'jax[tpu]'`)."""

import importlib.util
import json
import subprocess

import pytest
from conftest import ROOT, command, environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
]


def planned(*flags: str) -> dict:
    done = subprocess.run(
        [*command("plan"), "--topology=v5e:2x2", "--json", *flags],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_crate_tiny_over_the_batch():
    plan = planned("--config=configs/crate.py:tiny", "--config.batch_size=64")
    assert plan["fits"] and plan["num_devices"] == 4
    assert {"hbm_bytes", "peak_bytes", "argument_bytes", "temp_bytes", "compile_seconds"} < plan.keys()
    # The gradients are added up, in bfloat16 or float32, and nothing else of size is sent: no parameter, no activation.
    assert set(plan["collectives"]) == {"all-reduce"}
    assert 2 * plan["num_params"] <= plan["collectives"]["all-reduce"]["bytes"] < 5 * plan["num_params"]
    # Activations are split: XLA keeps 16 images a device. The residual stream of 12 layers alone, for all 64, in bfloat16:
    whole = 12 * 64 * 197 * 384 * 2
    assert whole / 4 < plan["temp_bytes"] < 10 * whole
    # Three products of 384² a token and layer, forward and twice backward, and the attention's, which are fewer.
    dense = 3 * 2 * 3 * 384**2 * 12 * 64 * 197
    assert dense < plan["flops_per_step"] < 2 * dense


def test_a_small_igpt_with_split_parameters():
    """Each of four devices holds a quarter of the parameters and moments, and of the activations."""
    shrunk = ["--config=configs/igpt.py:imagenet32_l", "--config.model.depth=3", "--config.model.remat=full"]
    plan = planned(*shrunk, "--mesh=fsdp", "--config.batch_size=16")
    assert plan["fits"] and plan["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    whole = 4 * plan["num_params"]
    assert plan["params_bytes"] < 1.01 * whole / 4 and plan["optimizer_bytes"] < 1.01 * 2 * whole / 4
    # Parameters are gathered for the forward pass, the recomputed one and the backward one, and gradients added up.
    sent = sum(found["bytes"] for found in plan["collectives"].values())
    assert 4 * plan["num_params"] < sent < 24 * plan["num_params"]
    # The scores of attention alone, of all 16 images of 1,024 tokens in 16 heads, would take 1 GiB in float32, and their
    # gradients as much.
    assert plan["temp_bytes"] < 2 * 2**30
    # 12.1 GiB with splash attention, which `auto` takes on a TPU; XLA's form moves 19.6.
    assert plan["moved_bytes"] < 14 * 2**30


def test_what_does_not_fit_is_said_not_crashed():
    plan = planned("--config=configs/crate.py:tiny", "--config.batch_size=65536")
    assert not plan["fits"]
    assert plan["peak_bytes"] is None or plan["peak_bytes"] > plan["hbm_bytes"]


def test_sizes_that_do_not_divide_are_one_line():
    flags = ["--topology=v5e:4x8", "--mesh=fsdp", "--config.model.dim=1544", "--config.model.heads=8"]
    done = subprocess.run(
        [*command("plan"), "--config=configs/igpt.py:imagenet32_l", *flags],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "does not divide over fsdp=32; nearest sizes that work: 8, 193" in line, line
