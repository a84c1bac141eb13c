"""Accelerators that we know by name, and how fast they are."""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """One device: its memory in bytes, and its rates in flop/s (bfloat16 matrix products) and byte/s (read and written).

    `peak_flops` and `bandwidth` are published by the vendor, for dense matrices. `measured_flops` and `measured_bandwidth`
    are what a large matrix product and a large copy reached on the device; None where that was not measured.
    """

    hbm_bytes: int
    peak_flops: float
    bandwidth: float
    measured_flops: float | None = None
    measured_bandwidth: float | None = None

    @property
    def reachable_flops(self) -> float:
        """The measured rate of matrix products, else the published one."""
        return self.measured_flops or self.peak_flops

    @property
    def reachable_bandwidth(self) -> float:
        """The measured rate of a copy, else the published one."""
        return self.measured_bandwidth or self.bandwidth

    @property
    def rates_are(self) -> str:
        """Where the reachable rates come from."""
        return "measured" if self.measured_flops and self.measured_bandwidth else "published"


CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 1.2e12),
    "v5e": Chip(16 * GIB, 197e12, 0.82e12),
    "v5p": Chip(95 * GIB, 459e12, 2.765e12),
    "v6e": Chip(32 * GIB, 918e12, 1.6e12),
    "a100": Chip(80 * GIB, 312e12, 2.039e12),
    # Measured on an H100 80GB HBM3: a product of 8192³ and a copy within the device.
    "h100": Chip(80 * GIB, 989e12, 3.35e12, 729e12, 2.86e12),
}

# What JAX calls them (`jax.Device.device_kind`): the first of these that the name contains.
DEVICE_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5p": "v5p",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "A100": "a100",
    # Other H100s (PCIe, NVL) are slower than the one meant here.
    "H100 80GB HBM3": "h100",
}


def find(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None for one that is not known."""
    return next((CHIPS[name] for text, name in DEVICE_KINDS.items() if text in device_kind), None)
