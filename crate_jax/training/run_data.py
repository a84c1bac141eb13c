"""The data of a run: found and read on first use, and not before."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from rich.text import Text

from crate_jax import InputError
from crate_jax.data import folders, pipeline, sources, subset
from crate_jax.data.augmentation import Augment, WithCrops
from crate_jax.data.dataset import notes_of
from crate_jax.parallel.sharding import batch_part
from crate_jax.runs.config import Config, DataConfig
from crate_jax.runs.console import console
from crate_jax.tasks import crops_of

# What the data of a run are called where nobody knows them.
UNKNOWN = "unknown"
# Finds the data when it is first called, and remembers them.
Find = Callable[[], sources.Dataset]


def finder(data: DataConfig, exclude: str) -> Find:
    """A function that opens the data of a configuration; `exclude` is a folder that is no data although it may lie there."""
    return functools.cache(lambda: sources.open_dataset(data.name, data_dir=data.data_dir, exclude=exclude))


def describe(config: Config, find: Find) -> sources.DatasetInfo:
    """What the data hold and how many examples of them `config` uses; reads a few images at most. Says what is left out.

    Sequences that leave their length to the model are counted once it is fitted, see `DatasetInfo.cut`.
    """
    data, dataset = config.data, find()
    for note in notes_of(dataset):
        console.print(Text(note))
    info = sources.inspect(data.name, train=data.train_split, test=data.test_split, dataset=dataset)
    if data.labels_per_class is None:
        return info
    train = min(info.num_examples["train"], data.labels_per_class * info.num_classes)
    return dataclasses.replace(info, num_examples={**info.num_examples, "train": train})


class RunData:
    """Examples and batches of a run. Whatever is wrong with the data is an InputError at the first call that needs them.

    Args:
      config: the run's, fitted to its data.
      info: what its data hold.
      mesh: decides which part of a batch this process reads.
      find: finds the data.
      classes: class names whose places are the labels, where they are not those of the data themselves.
    """

    def __init__(
        self,
        config: Config,
        info: sources.DatasetInfo,
        mesh: Mesh,
        find: Find,
        classes: tuple[str, ...] | None = None,
    ):
        self._config, self._info, self._mesh, self._find, self._classes = config, info, mesh, find, classes

    def source(self, use: str, *, fitted: bool = True) -> sources.Source:
        """The examples to "train" or "test" on, with the model's labels, as images that the model takes or as stored."""
        config, data = self._config, self._config.data
        source = sources.load(
            data.name,
            {"train": data.train_split, "test": data.test_split}[use],
            length=config.model.sequence_length,
            most_pixels=round(data.max_megapixels * 1e6),
            dataset=self._find(),
        )
        if use == "train" and data.labels_per_class is not None:
            source = subset.per_class(
                source, data.labels_per_class, num_classes=self._info.num_classes, seed=config.seed
            )
        source = self._fitted(source) if fitted else source
        return source if self._labels is None else _Relabelled(source, self._labels)

    def images(self, path: Path) -> sources.Source:
        """The images of a folder and of the folders in it, in the order of their names, as the model takes them; their label
        is −1.

        Raises:
          InputError: no such folder, none that holds images, or a run that was not trained on images.
        """
        if self._config.data.shape is None:
            raise InputError(
                f"--input: found {path} for a run on {self._info.kind}; accepted: a run on images"
            )
        return self._fitted(folders.unlabelled(path))

    def _fitted(self, source: sources.Source) -> sources.Source:
        """Stored examples as the model takes them, beside the crops that its task cuts out."""
        if self._config.data.shape is None:
            return source
        crops = crops_of(self._config)
        source = source if crops is None else WithCrops(source, crops)
        return sources.Fitted(source, *_shape(self._config.data).values())

    def train_batches(self) -> pipeline.Batches:
        """Training batches, a pure function of (seed, step)."""
        config = self._config
        part, parts = batch_part(self._mesh)
        return pipeline.train(
            self.source("train", fitted=False),
            batch_size=config.batch_size,
            seed=config.seed,
            augment=None if config.data.shape is None else _augment(config.data),
            crops=crops_of(config),
            process_index=part,
            process_count=parts,
            num_threads=config.data.threads,
        )

    def eval_batches(self, source: sources.Source) -> pipeline.Evaluation:
        """Every example of `source` once, padded to whole batches."""
        part, parts = batch_part(self._mesh)
        return pipeline.evaluation(
            source,
            batch_size=self._config.batch_size,
            process_index=part,
            process_count=parts,
            num_threads=self._config.data.threads,
        )

    @functools.cached_property
    def _labels(self) -> np.ndarray | None:
        """The model's label for each class of the data; None where they are the same."""
        if self._classes is None:
            return None
        info = self._find().info(self._config.data.name)
        return None if info.class_names == self._classes else label_map(info, self._classes)


def _shape(data: DataConfig) -> dict[str, Any]:
    """What `sources.load` makes of stored images."""
    return {
        "image_size": data.shape,
        "channels": data.channels,
        "resize": data.eval_resize,
        "stretch": data.stretch,
    }


def _augment(data: DataConfig) -> Augment:
    shape = _shape(data)
    return Augment.of(data, size=shape.pop("image_size"), **shape)


@dataclasses.dataclass(frozen=True)
class _Relabelled:
    """A source whose labels are looked up in a table."""

    source: sources.Source
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        example = self.source[index]
        return {**example, "label": self.labels[example["label"]]}


def label_map(info: sources.DatasetInfo, known: tuple[str, ...]) -> np.ndarray:
    """The trained label of each class of other data, matched by name, or by number where all names are numbers.

    Raises:
      InputError: a class that is not among those the model was trained on.
    """
    names = info.class_names
    if not set(names) <= set(known) and all(name.isdecimal() and int(name) < len(known) for name in names):
        # ImageNet-V2 calls its folders 0, 1, …, 999.
        return np.array([int(name) for name in names], np.int32)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"{info.name}: classes {', '.join(unknown[:5])} are not among those the model was trained on "
            f"({', '.join(known[:10])}{', …' if len(known) > 10 else ''})"
        )
    return np.array([known.index(name) for name in names], np.int32)
