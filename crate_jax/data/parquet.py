"""Datasets of Hugging Face as they lie on disk: parquet files."""

import collections
import json
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np

from crate_jax import InputError
from crate_jax.data import transforms
from crate_jax.data.dataset import (
    TEST_SPLITS,
    LabelledImages,
    Source,
    by_split,
    digest,
    digest_of_files,
    median_shape,
    numbered,
)

# Rows can be read in groups only: so much is kept of the groups that were read last.
_CACHE_BYTES = 2**30


class Parquet(LabelledImages):
    """A dataset of Hugging Face on disk, see `sources`."""

    def __init__(self, path: Path):
        import pyarrow.parquet as pq  # comes with tensorflow-datasets; takes a moment to import

        files = by_split(path, ".parquet")
        self._name, self._path = f"parquet:{path}", path
        self._sources, names, labels = {}, None, {}
        for split, group in files.items():
            try:
                tables = [pq.read_table(file, columns=["label"]) for file in group]
                groups = [pq.ParquetFile(file).metadata for file in group]
                schema = pq.read_schema(group[0])
                images = [pq.read_schema(file).field("image").type for file in group]
            except Exception as error:  # pyarrow's own, KeyError, OSError
                reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
                raise InputError(
                    f"{self._name}: {split} cannot be read ({reason}); accepted: the columns image, label"
                ) from error
            if not all(str(kind).startswith("struct<") and "bytes" in str(kind) for kind in images):
                raise InputError(
                    f"{self._name}: image is {images[0]}; accepted: Hugging Face's struct with bytes"
                )
            labels[split] = np.concatenate([table["label"].to_numpy() for table in tables])
            if labels[split].dtype.kind not in "iu":
                raise InputError(f"{self._name}: label is {labels[split].dtype}; accepted: integers")
            rows = [
                (str(file), group, metadata.row_group(group).num_rows)
                for file, metadata in zip(group, groups, strict=True)
                for group in range(metadata.num_row_groups)
            ]
            names = names or _class_names(schema)
            self._sources[split] = _Rows(rows, labels[split])
        # Hugging Face marks what has no label by −1.
        kept = {split: values for split, values in labels.items() if values.size and values.min() >= 0}
        if "train" not in kept or not kept.keys() & set(TEST_SPLITS):
            accepted = f"accepted: train and one of {', '.join(TEST_SPLITS)}"
            raise InputError(
                f"{self._name} has labels in the splits: {', '.join(kept) or 'none'}; {accepted}"
            )
        self._sources = {split: self._sources[split] for split in kept}
        found = {int(label) for values in kept.values() for label in np.unique(values)}
        self.classes = names or numbered(found, self._name)
        if max(found) >= len(self.classes):
            raise InputError(f"{self._name}: labels up to {max(found)}, {len(self.classes)} class names")
        for source in self._sources.values():
            source.labels = source.labels.astype(np.int32)
        self.splits = {split: len(source) for split, source in self._sources.items()}

    def fingerprint(self) -> str:
        files = dict.fromkeys(path for source in self._sources.values() for path, _, _ in source.rows)
        labels = digest(source.labels.tobytes() for source in self._sources.values())
        return digest([digest_of_files(self._path, files), labels])

    def natural_shape(self) -> tuple[int, int]:
        # Only the first group: looking everywhere would read all files.
        source = self._sources["train"]
        return median_shape(source, min(len(source), source.rows[0][2]))

    def load(self, split: str) -> Source:
        return self._sources[split]


def _class_names(schema: Any) -> tuple[str, ...] | None:
    """The names that Hugging Face's datasets keep in the schema."""
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    label = about.get("info", {}).get("features", {}).get("label", {})
    return tuple(label["names"]) if label.get("names") else None


class _Rows:
    """A source over rows of parquet files; reading in order reads each row group once."""

    def __init__(self, rows: list[tuple[str, int, int]], labels: np.ndarray):
        self.rows, self.labels = rows, labels
        self._ends = np.cumsum([count for _, _, count in rows])
        self._start_cache()

    def _start_cache(self) -> None:
        self._cache: collections.OrderedDict = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"rows": self.rows, "labels": self.labels, "_ends": self._ends}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_cache()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        group = int(np.searchsorted(self._ends, index, side="right"))
        path, _, count = self.rows[group]
        row = index - (int(self._ends[group]) - count)
        with self._lock:  # One thread reads a group; the others find it in the cache.
            column = self._cache.get(group)
            if column is None:
                column = self._read(group)
                self._cache[group] = column
                while len(self._cache) > 1 and sum(c.nbytes for c in self._cache.values()) > _CACHE_BYTES:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(group)
        image = column[row].as_py()
        where = f"{path}, row {row} of group {self.rows[group][1]}"
        if image is None or image["bytes"] is None:
            raise InputError(f"{where}: unreadable image (no bytes)")
        if image.get("path"):
            where += f", {image['path']}"
        return {"image": transforms.Encoded(image["bytes"], where), "label": self.labels[index]}

    def _read(self, group: int) -> Any:
        import pyarrow.parquet as pq

        path, number, _ = self.rows[group]
        return pq.ParquetFile(path).read_row_group(number, columns=["image"])["image"].combine_chunks()
