"""All measures by name."""

import functools
import inspect

from crate_jax import InputError
from crate_jax.alignment import arguments
from crate_jax.alignment.cca import cca_measure, pwcca_measure, svcca_measure
from crate_jax.alignment.cka import cka_measure, distance_correlation_measure
from crate_jax.alignment.cknna import cknna_measure
from crate_jax.alignment.geometry import procrustes_measure, rsa_measure
from crate_jax.alignment.knn import knn_measure
from crate_jax.alignment.measure import Measure

# Name → what makes the measure, its settings as arguments.
MEASURES = {
    "mutual_knn": functools.partial(knn_measure, "mutual_knn"),
    "jaccard_knn": functools.partial(knn_measure, "jaccard_knn"),
    "cycle_knn": functools.partial(knn_measure, "cycle_knn"),
    "lcs_knn": functools.partial(knn_measure, "lcs_knn"),
    "edit_distance_knn": functools.partial(knn_measure, "edit_distance_knn"),
    "cka": cka_measure,
    "cknna": cknna_measure,
    "cca": cca_measure,
    "svcca": svcca_measure,
    "pwcca": pwcca_measure,
    "procrustes": procrustes_measure,
    "rsa": rsa_measure,
    "rv": functools.partial(cka_measure, "linear", False, None, "paper"),
    "distance_correlation": distance_correlation_measure,
}


def measure(name: str, **settings) -> Measure:
    """A measure of alignment by its name, with settings such as `k=10`, `form="platonic"` or `unbiased=True`.

    >>> measure("mutual_knn", k=5).name
    'mutual_knn, k = 5, cosine'

    Raises:
      InputError: a name or a setting that does not exist.
    """
    arguments.one_of("measure", name, tuple(MEASURES))
    made = MEASURES[name]
    function = made.func if isinstance(made, functools.partial) else made
    bound = len(made.args) if isinstance(made, functools.partial) else 0
    accepted = list(inspect.signature(function).parameters)[bound:]
    for setting in settings:
        if setting not in accepted:
            raise InputError(
                f"{name}: setting {setting!r} was given; {', '.join(accepted) or 'none'} is accepted"
            )
    return made(**settings)
