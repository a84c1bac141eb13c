"""Input pipeline: where examples come from, how they are transformed, and in which order they are seen.

``sources`` reads a dataset by name, ``transforms`` holds the functions on one image, and ``pipeline`` makes
batches that are a pure function of (seed, step).
"""

from crate_jax.data.augmentation import Augment
from crate_jax.data.pipeline import Batches, Evaluation, evaluation, train
from crate_jax.data.sources import DatasetInfo, Source, inspect, load

__all__ = [
    "Augment",
    "Batches",
    "DatasetInfo",
    "Evaluation",
    "Source",
    "evaluation",
    "inspect",
    "load",
    "train",
]
