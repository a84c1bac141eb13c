"""The layers of models as features of the same samples: from runs, or from files of saved features."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from crate_jax import InputError, models
from crate_jax.analysis import features
from crate_jax.data import subset
from crate_jax.data.sources import Source
from crate_jax.parallel.sharding import shard_batch
from crate_jax.runs.cli import folder
from crate_jax.training.building import Run
from crate_jax.training.opening import open_run
from crate_jax.weights import files as weight_files

SUFFIXES = (".npz", ".npy", ".safetensors")
LABELS = "labels"


@dataclasses.dataclass(frozen=True)
class Representation:
    """A model as its layers see some samples.

    Attributes:
      name: for people.
      layers: float32 `[n, d]` each, of any widths.
      names: one per layer.
      labels: int `[n]`, or None where nobody knows them.
    """

    name: str
    layers: list[np.ndarray]
    names: list[str]
    labels: np.ndarray | None = None

    def rows(self, chosen: np.ndarray) -> "Representation":
        """The same model on some of the samples."""
        labels = None if self.labels is None else self.labels[chosen]
        return dataclasses.replace(self, layers=[layer[chosen] for layer in self.layers], labels=labels)


def load(source: str, *, split: str = "test", checkpoint: str = "latest", samples: int = 0) -> Representation:
    """A model from a run's folder, or from a file of features.

    A run's layers are what its blocks are given, layer-normed and averaged over positions, as `python -m crate_jax.probe`
    reads them; `RUN@untrained` is the network that the run started from. In a file every array `[n, d]` is a layer, in the
    order of its name, and an array `[layers, n, d]` is several; `labels` `[n]` are the samples' classes.

    Args:
      source: folder or file.
      split: of a run's data, "train" or "test".
      checkpoint: of a run.
      samples: at most so many, evenly spread over the split or the file; 0: all.
    Raises:
      InputError: no such file or run, one that holds no features, data without labels.
    """
    if source.endswith(SUFFIXES):
        return _from_file(folder(source), samples)
    run, params, name = open_images(source, checkpoint)
    whole = run.data.source(split)
    some = subset.spread(whole, min(samples or len(whole), len(whole)))
    return of_images(run, params, name, some)


def open_images(source: str, checkpoint: str) -> tuple[Run, models.Params, str]:
    """A run of labelled images with its trained or untrained parameters, and a name for it.

    Raises:
      InputError: no run, or one of something else.
    """
    path, _, state = source.partition("@")
    if not folder(path).is_dir():
        raise InputError(
            f"--models: no run or file {path}; accepted: a run's folder, or features in {', '.join(SUFFIXES)}"
        )
    if state not in ("", "untrained"):
        raise InputError(f"--models: found {source}; accepted: RUN or RUN@untrained")
    run, params, _ = open_run(folder(path), checkpoint, match_classes=False)
    if run.info.tokens is not None or not run.info.num_classes:
        raise InputError(f"--models: {path} is of {run.info.kind}; accepted: runs of labelled images")
    if state:
        params = jax.jit(run.model.init)(jax.random.key(run.config.seed))
    return run, params, f"{folder(path).name} {state}".strip()


def of_images(run: Run, params: models.Params, name: str, examples: Source) -> Representation:
    """The layers of a run's network on images: what its blocks are given, layer-normed, mean over positions."""
    extractor = features.network(run, params, name)
    values, labels = [], []
    with jax.set_mesh(run.mesh):
        for batch in run.data.eval_batches(examples):
            real = batch["mask"] > 0
            values.append(jax.device_get(extractor.read(shard_batch(batch, run.mesh)))[:, real])
            labels.append(batch["label"][real])
    layers = list(np.concatenate(values, axis=1))
    return Representation(name, layers, [str(i + 1) for i in range(len(layers))], np.concatenate(labels))


def spread(n: int, samples: int) -> np.ndarray:
    """The places of at most `samples` of n, evenly spread; all of them for 0."""
    count = min(samples, n) if samples else n
    return np.arange(count) * n // count


def choose(model: Representation, layers: Sequence[int]) -> Representation:
    """Only some layers of a model, counted from 1; those past the end are an error.

    Raises:
      InputError: a layer that the model does not have.
    """
    wrong = [layer for layer in layers if layer > len(model.layers)]
    if wrong:
        raise InputError(
            f"--layers: found {wrong[0]}; accepted: 1 to {len(model.layers)}, the layers of {model.name}"
        )
    if not layers:
        return model
    return dataclasses.replace(
        model,
        layers=[model.layers[layer - 1] for layer in layers],
        names=[model.names[layer - 1] for layer in layers],
    )


def _from_file(path: Path, samples: int) -> Representation:
    if not path.is_file():
        raise InputError(f"--models: no file {path}")
    if path.suffix == ".npy":
        try:
            arrays = {"features": np.load(path, allow_pickle=False)}
        except ValueError as error:
            raise InputError(f"--models: {path} cannot be read: {error}") from None
    else:
        found = weight_files.open_file(path)
        arrays = {name: each.read() for name, each in found.items() if hasattr(each, "read")}
    labels = arrays.pop(LABELS, None)
    layers, names = [], []
    for name in sorted(arrays, key=_natural):
        array = np.asarray(arrays[name])
        if array.ndim not in (2, 3) or array.dtype.kind not in "fV":
            raise InputError(
                f"--models: {path}: {name} is {array.dtype} {array.shape}; "
                f"accepted: floating [n, d] or [layers, n, d], and whole {LABELS} [n]"
            )
        several = array.ndim == 3
        for i, layer in enumerate(array if several else array[None]):
            layers.append(np.asarray(layer, np.float32))
            names.append(f"{name}/{i + 1}" if several else name)
    if not layers:
        raise InputError(f"--models: {path} holds no features")
    sizes = {len(layer) for layer in layers} | (set() if labels is None else {len(labels)})
    if len(sizes) > 1:
        raise InputError(
            f"--models: {path} holds layers of {', '.join(map(str, sorted(sizes)))} rows; accepted: equal numbers"
        )
    model = Representation(path.stem, layers, names, None if labels is None else np.asarray(labels))
    return model.rows(spread(len(layers[0]), samples)) if samples else model


def _natural(name: str) -> list:
    """ "layer10" after "layer9"."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
