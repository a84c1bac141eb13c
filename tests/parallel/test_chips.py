"""Chips by the names that JAX gives them, and how busy a run keeps them."""

import types

import pytest

from crate_jax.parallel import chips
from crate_jax.runs import metrics


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
    ],
)
def test_a_chip_is_found_by_its_device_kind(kind, name):
    assert chips.find(kind) is chips.CHIPS[name]


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "TPU v9"])
def test_another_chip_is_not_guessed(kind):
    assert chips.find(kind) is None


def test_measured_rates_are_below_the_published_ones():
    for chip in chips.CHIPS.values():
        assert chip.reachable_flops <= chip.peak_flops and chip.reachable_bandwidth <= chip.bandwidth
    assert chips.CHIPS["h100"].rates_are == "measured" and chips.CHIPS["v4"].rates_are == "published"


def test_utilization_is_the_flops_done_over_those_possible(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    feed = types.SimpleNamespace(waited=0.0)
    window = metrics.ThroughputWindow(10, feed, step_flops=3 * 10**12, peak_flops=1e14)
    now[0] += 2
    # 20 steps of 3 Tflop in 2 seconds are 30 of 100 Tflop/s.
    assert window.restart(30, 8)["train/model_flops_utilization"] == pytest.approx(0.3)
    now[0] += 4
    assert window.restart(50, 8)["train/model_flops_utilization"] == pytest.approx(0.15)
    unknown = metrics.ThroughputWindow(0, feed)
    now[0] += 1
    assert "train/model_flops_utilization" not in unknown.restart(1, 8)
