"""Features of every layer in one pass over a split, kept on disk in chunks.

The features of layer l are f^l = (1/n) Σ_i LN(h^l)_i, the mean over the n positions of the layer-normed input of block l
(iGPT, Chen et al. 2020, section 2.3); the mean is taken inside the scan over layers, so no activations are kept.

A cache is a folder `<workdir>/features/<name>-<split>-<digest>/`; the digest covers all that the numbers depend on, so a
cache is either right or not found. It holds chunks of `[layers, rows, d]`, which make one layer of a set that does not
fit in memory quick to read, and, written last, `manifest.json`. The folder may be deleted at any time.
"""

import atexit
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import crate_jax
from crate_jax import InputError
from crate_jax.data import files, subset
from crate_jax.data.sources import Source
from crate_jax.models import Params
from crate_jax.parallel.sharding import replicated, shard_batch
from crate_jax.runs.console import console, progress
from crate_jax.runs.metrics import write_atomically
from crate_jax.training.building import Run

CHUNK_BYTES = 2**26
# Examples whose content stands for that of the whole split when a cache is looked up.
SAMPLED = 64
# Pixels a side beyond which the raw-pixel baseline looks at reduced images: iGPT's own probes are of 32² and 64².
MAX_PIXEL_SIZE = 32


class Extractor(NamedTuple):
    """A way to turn examples into features.

    Attributes:
      name: for people; names the cache's folder.
      run: where the examples come from.
      identity: what the features depend on besides the data, as JSON.
      inputs: `inputs(batch)`, what the features are computed from.
      read: `read(batch)` gives float32 `[layers, b, d]`.
    """

    name: str
    run: Run
    identity: dict[str, Any]
    inputs: Callable[[dict], jax.Array]
    read: Callable[[dict], jax.Array]


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of a split, on disk.

    Attributes:
      chunks: files of `[layers, rows, d]`, float32: some features' means are 80 times their deviation in the untrained
        digits network, and half precision would round a few percent of such a deviation away.
      labels: `[n]`, int32.
      num_layers: the number of layers.
      dim: the number of features, d.
    """

    chunks: tuple[Path, ...]
    labels: np.ndarray
    num_layers: int
    dim: int

    def read(self, layers: slice = slice(None)) -> np.ndarray:
        """The features of some layers, `[layers, n, d]`; only these are read from disk."""
        return np.concatenate([np.load(chunk, mmap_mode="r")[layers] for chunk in self.chunks], axis=1)


def network(run: Run, params: Params, name: str) -> Extractor:
    """The layers of a network with the given parameters."""

    def read(params, batch):
        _, trace = run.model.apply(params, run.task.inputs(batch), trace=mean_over_positions)
        return trace

    jitted = jax.jit(read, out_shardings=replicated(run.mesh))
    identity = {
        "params": _digest_of(jax.tree.leaves(params)),
        "model": dataclasses.asdict(run.model.config),
        "backend": jax.default_backend(),  # Decides in which precision the model computes.
    }
    return Extractor(name, run, identity, run.task.inputs, lambda batch: jitted(params, batch))


def pixels(run: Run) -> Extractor:
    """The images themselves as one layer, scaled to [0, 1]; reduced to MAX_PIXEL_SIZE a side where they are larger."""
    size = min(run.config.data.image_size, MAX_PIXEL_SIZE)
    config = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, image_size=size))

    def read(batch):
        image = batch["image"].astype(jnp.float32) / run.info.max_value
        return image.reshape(1, image.shape[0], -1)

    run = dataclasses.replace(run, config=config)
    jitted = jax.jit(read, out_shardings=replicated(run.mesh))
    return Extractor("pixels", run, {}, lambda batch: batch["image"], jitted)


def mean_over_positions(report: dict[str, jax.Array]) -> jax.Array:
    """`[b, n, d]` → float32 `[b, d]`: the probe's features of one block; pass it as `trace=`."""
    return jnp.mean(report["normed"], axis=1, dtype=jnp.float32)


def extract(extractor: Extractor, split: str) -> Features:
    """The features of a whole split, from the cache if they are there.

    A pass that was cut off goes on after its last chunk.

    Args:
      extractor: from `network` or `pixels`.
      split: "train" or "test".
    Returns:
      the features of every example once, in the order of the source.
    Raises:
      InputError: unreadable data, or more than one process: there would be several writers of one cache.
    """
    if jax.process_count() > 1:
        raise InputError(
            f"features: found {jax.process_count()} processes; accepted: one, with any number of devices"
        )
    run = extractor.run
    source = run.data.source(split)
    identity = {**extractor.identity, **_data_identity(extractor, source), "split": split}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    name = f"{extractor.name}-{split}-{digest[:12]}"
    directory = run.workdir / "features" / name
    if not (directory / "manifest.json").exists():
        directory = _writable(directory)
    manifest = directory / "manifest.json"
    if not manifest.exists():
        starts = _write_chunks(extractor, source, directory, f"features of {extractor.name}, {split}")
        write_atomically(manifest, json.dumps({**identity, "chunks": starts}, indent=2) + "\n")
    starts = json.loads(manifest.read_text(encoding="utf-8"))["chunks"]
    chunks = tuple(_chunk(directory, "features", start) for start in starts)
    num_layers, _, dim = np.load(chunks[0], mmap_mode="r").shape
    labels = np.concatenate([np.load(_chunk(directory, "labels", start)) for start in starts])
    return Features(chunks, labels, num_layers, dim)


def _writable(directory: Path) -> Path:
    """The folder, made; where that cannot be, one that goes with the process."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            return directory
        reason = "no right to write"
    except OSError as error:
        reason = error.strerror
    console.print(f"not kept: {directory} ({reason})")
    temporary = Path(tempfile.mkdtemp(prefix="features-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


class _Part(NamedTuple):
    """The examples [start, stop) of a source; a source itself."""

    source: Source
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self.start + index]


def _write_chunks(extractor: Extractor, source: Source, directory: Path, title: str) -> list[int]:
    """Computes the chunks that are not there yet; returns the first example of each."""
    batch = shard_batch(next(iter(extractor.run.data.eval_batches(_Part(source, 0, 1)))), extractor.run.mesh)
    layers, _, dim = jax.eval_shape(extractor.read, batch).shape
    # A power of two, so that chunks are whole batches for the usual batch sizes, yet do not depend on them.
    rows = 1 << max(0, (CHUNK_BYTES // (4 * layers * dim)).bit_length() - 1)
    starts = list(range(0, len(source), rows))
    with progress(title, len(source)) as advance:
        for start in starts:
            part = _Part(source, start, min(start + rows, len(source)))
            features = _chunk(directory, "features", start)
            if features.exists():
                advance(len(part))
                continue
            values, labels = [], []
            for batch in extractor.run.data.eval_batches(part):
                real = batch["mask"] > 0
                values.append(jax.device_get(extractor.read(shard_batch(batch, extractor.run.mesh)))[:, real])
                labels.append(batch["label"][real])
                advance(int(real.sum()))
            _save(_chunk(directory, "labels", start), np.concatenate(labels))
            _save(features, np.concatenate(values, axis=1))
    return starts


def _chunk(directory: Path, kind: str, start: int) -> Path:
    return directory / f"{kind}-{start:09d}.npy"


def _save(path: Path, array: np.ndarray) -> None:
    with files.whole(path) as file:
        np.save(file, array)


def _data_identity(extractor: Extractor, source: Source) -> dict[str, Any]:
    """Describes the data: what they say of themselves, and what the model sees of a few examples.

    The latter covers normalisation, palettes and files replaced in place without reading a large set twice.
    """
    some = subset.spread(source, SAMPLED)
    chosen = [some[i] for i in range(len(some))]
    batch = {name: np.stack([example[name] for example in chosen]) for name in chosen[0]}
    return {
        "version": crate_jax.__version__,
        "data": dataclasses.asdict(extractor.run.info),
        "sample": _digest_of([batch["label"], extractor.inputs(batch)]),
    }


def _digest_of(arrays: list[Any]) -> str:
    digest = hashlib.sha256()
    for array in map(np.asarray, arrays):
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
