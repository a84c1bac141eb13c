"""Neighbours with rows spread over a mesh are those of one device, and no device holds all similarities."""

import sys

from conftest import run

PROGRAM = """
import jax, numpy as np
from crate_jax import alignment
from crate_jax.alignment.neighbors import search

generator = np.random.default_rng(0)
x = generator.standard_normal((103, 8)).astype(np.float32)
y = x + 0.5 * generator.standard_normal(x.shape).astype(np.float32)
for shape, names in (((4,), ("data",)), ((2, 2), ("data", "fsdp"))):
    mesh = jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(shape))
    # 40 neighbours are more than a device has rows.
    for similarity, k in (("cosine", 5), ("euclidean", 40)):
        alone = alignment.nearest_neighbors(x, k, similarity=similarity)
        spread = alignment.nearest_neighbors(x, k, similarity=similarity, mesh=mesh)
        np.testing.assert_array_equal(alone, spread)
    assert alignment.mutual_knn(x, y, mesh=mesh) == alignment.mutual_knn(x, y)
text = search.lower(x, 5, "cosine", mesh).compile().as_text()
assert "collective-permute" in text and "all-gather" not in text.split("ENTRY")[0]
assert "f32[26,26]" in text and "f32[104,104]" not in text
"""


def test_a_mesh_gives_the_same_neighbours():
    done = run([sys.executable, "-c", PROGRAM], devices=4)
    assert done.returncode == 0, done.stderr[-2000:]
