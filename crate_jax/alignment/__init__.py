"""How alike two models represent the same samples: measures of alignment as pure functions; needs jax and nothing else.

Features are `[n, d]`, one row per sample; two models' features have the same samples in the same order and any widths.
Everything is computed in float32 with `Precision.HIGHEST`. Where libraries disagree about a measure, its `form` says whose
it is: "paper", "platonic" (minyoungg/platonic-rep), "aristotelian" (mlbio-epfl/Aristotelian) or "resi" (mklabunde/resi).
"""

from crate_jax.alignment.calibration import (
    Calibrated,
    Comparison,
    calibrate,
    compare_layers,
    interval,
    p_values,
    permutations,
    score_table,
)
from crate_jax.alignment.cca import cca, pwcca, svcca
from crate_jax.alignment.cka import cka, distance_correlation, hsic, rv_coefficient
from crate_jax.alignment.cknna import cknna
from crate_jax.alignment.geometry import procrustes, rsa, shape_distance
from crate_jax.alignment.knn import cycle_knn, edit_distance_knn, jaccard_knn, lcs_knn, mutual_knn
from crate_jax.alignment.measure import Measure
from crate_jax.alignment.measures import MEASURES, measure
from crate_jax.alignment.neighbors import nearest_neighbors
from crate_jax.alignment.pmi import pmi_kernel
from crate_jax.alignment.units import Matches, unit_matches

__all__ = [
    "MEASURES",
    "Calibrated",
    "Comparison",
    "Matches",
    "Measure",
    "calibrate",
    "cca",
    "cka",
    "cknna",
    "compare_layers",
    "cycle_knn",
    "distance_correlation",
    "edit_distance_knn",
    "hsic",
    "interval",
    "jaccard_knn",
    "lcs_knn",
    "measure",
    "mutual_knn",
    "nearest_neighbors",
    "p_values",
    "permutations",
    "pmi_kernel",
    "procrustes",
    "pwcca",
    "rsa",
    "rv_coefficient",
    "score_table",
    "shape_distance",
    "svcca",
    "unit_matches",
]
