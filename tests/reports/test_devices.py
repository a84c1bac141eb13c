"""What a report says does not depend on how many devices made it."""

import json
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, command, run

SECTIONS = ("layerwise", "attention", "segmentation", "subspaces", "atoms")
# The held-out digits.
EXAMPLES = 360
MESH = {"mesh.fsdp": 2, "mesh.tensor": 2}


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key → value, of a tree from a JSON file."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        yield path, tree
        return
    for key, value in items:
        yield from leaves(value, f"{path}.{key}")


def measured(folder, devices: int, **config) -> dict[str, dict[str, Any]]:
    """The numbers of every section, made on so many devices."""
    flags = (f"--workdir={folder}", f"--sections={','.join(SECTIONS)}")
    done = run(command("report", *flags, **config), devices=devices, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        name: dict(leaves(json.loads((folder / "report" / f"{name}.json").read_text()))) for name in SECTIONS
    }


@pytest.mark.slow
def test_several_devices_say_what_one_does(tmp_path):
    """Eight, that split the examples and the parameters."""
    with tarfile.open(ROOT / "tests" / "fixtures" / "runs" / "crate.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    one = measured(tmp_path / "run", 1)
    several = measured(tmp_path / "run", 8, **MESH)
    for name in SECTIONS:
        assert one[name].keys() == several[name].keys() and len(one[name]) > 10
        for key, value in one[name].items():
            if not isinstance(value, float):
                assert several[name][key] == value, f"{name}{key}"
                continue
            share = "/lowered/" in key
            if share and ".std." in key:
                continue  # It follows from the mean.
            # Of a share of examples one or two may be ties that rounding decides.
            atol = 2 / EXAMPLES if share else 1e-5
            np.testing.assert_allclose(several[name][key], value, rtol=1e-4, atol=atol, err_msg=name + key)
