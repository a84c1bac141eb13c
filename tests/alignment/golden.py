"""Numbers of the released libraries, and the features that they are of."""

import json
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parents[1] / "fixtures"
OFFICIAL = np.load(FIXTURES / "alignment_official.npz")
LIBRARIES = np.load(FIXTURES / "alignment_libraries.npz")
_INDEX = json.loads(LIBRARIES["index"].item())
VALUES = {key: np.array(value) for key, value in _INDEX["values"].items()}
NULLS = dict(zip(_INDEX["nulls"], LIBRARIES["nulls"], strict=True))
A, B, C = (LIBRARIES[f"feats_{name}"] for name in "abc")
LAYERS_A = [LIBRARIES["layer_a0"], A, LIBRARIES["layer_a2"]]
LAYERS_B = [LIBRARIES["layer_b0"], B, LIBRARIES["layer_b2"]]
PERMUTATIONS = LIBRARIES["calib/perms"].astype(np.int32)
# The order of the three values under a key.
PAIRS = ((A, B), (A, C), (B, A))


def expected(key):
    """The three values of a key; those that the library gave for float64 inputs where it did."""
    return VALUES.get(f"{key}/f64", VALUES[key])


def prepared(x, how):
    """Rows as they are ("raw") or divided by their lengths ("unit")."""
    return x if how == "raw" else x / np.linalg.norm(x, axis=1, keepdims=True)
