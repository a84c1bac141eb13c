"""How much of a large file the host holds while it goes to the devices of a mesh."""

import json
import subprocess
import sys

import pytest
from conftest import environment

from crate_jax import models
from crate_jax.weights import files
from tests.weights.conftest import released

# Peak anonymous memory while a file goes to 8 forced devices, above that before; those of the first use of jax are not
# counted: a small model goes there before.
MEASURE = """
import json, sys, threading, time
import jax, numpy as np
from crate_jax import models, weights
from crate_jax.parallel.sharding import MeshConfig, make_mesh, tree_shardings

def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])

def place(found):
    with jax.set_mesh(mesh):
        return jax.block_until_ready(found.params(lambda abstract: tree_shardings(abstract, mesh)))

mesh = make_mesh(MeshConfig("fsdp"))
sizes = dict(image_size=8, patch_size=4, num_classes=8, dim=64, depth=24, heads=8, head_dim=8)
abstract = models.create(models.CRATEConfig(**sizes)).abstract_params
small = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract)
place(weights.inspect(weights.export(small, "crate"), heads=8))
found = weights.inspect(sys.argv[1])
tree_shardings(models.create(found.config).abstract_params, mesh)
before = peak = anonymous()
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch)
thread.start()
params = place(found)
done.set()
thread.join()
arrays = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
largest = max(array.nbytes for array in found.arrays.values())
print(json.dumps({"peak": peak - before, "arrays": arrays, "largest": largest, "devices": jax.device_count()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_crate_large_on_eight_devices(tmp_path):
    arrays = released("crate", models.crate("large"))
    for suffix in files.WRITERS:
        file = tmp_path / f"large{suffix}"
        files.write(file, arrays, {})
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(file)],
            env=environment(8),
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["devices"] == 8
        assert found["peak"] <= found["arrays"] + found["largest"] + file.stat().st_size // 10, (
            suffix,
            found,
        )
        file.unlink()
