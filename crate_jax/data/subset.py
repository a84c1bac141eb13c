"""Parts of a source."""

import numpy as np

from crate_jax import InputError
from crate_jax.data.dataset import Part, Source, spread

__all__ = ["per_class", "spread"]


def per_class(source: Source, count: int, *, num_classes: int, seed: int) -> Source:
    """`count` random examples of each class.

    Args:
        source: all examples.
        count: examples of each class.
        num_classes: number of classes.
        seed: decides which.

    Raises:
        InputError: a class with fewer examples.
    """
    if count < 1:
        raise InputError(f"data.labels_per_class: found {count}; accepted: 1 or more")
    missing = np.full(num_classes, count)
    chosen = []
    # Examples are drawn until every class is complete, so that a large dataset is not read to its end for a few labels.
    for i in np.argsort(np.random.Philox(key=seed).random_raw(len(source)), kind="stable"):
        label = source[int(i)]["label"]
        if missing[label]:
            missing[label] -= 1
            chosen.append(i)
            if not missing.any():
                return Part(source, np.sort(chosen))
    fewest = count - int(missing.max())
    raise InputError(
        f"data.labels_per_class: found {count}; accepted: at most {fewest}, the size of the smallest class"
    )
