"""Text as bytes: windows of one length from a file, a folder of files, or the sources of Python's own library.

The bytes of all files stand one after the other, in the order of their paths. Training windows may start anywhere; test
windows follow each other, so that each of their bytes is predicted once and the mean loss is a code length. Bytes at the end
that do not fill a window, fewer than one window has, belong to no test window and to no number.
"""

import copy
import dataclasses
import re
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

from crate_jax import InputError
from crate_jax.data.dataset import (
    SPLITS,
    TEST_SPLITS,
    DatasetInfo,
    Source,
    Tokens,
    digest,
    digest_of_files,
    split_of,
)

# What a text holds.
BYTES = Tokens(256, "byte", "text")
# Grain permutes indices below 2³².
_MAX_STARTS = 2**31


class Text:
    """A text that has been found: a file, or a folder with a part for testing, in folders or in files: `train/` and `test/`,
    `train.txt` and `valid.txt`. Of other texts the last tenth is for testing.
    """

    _length: int | None = None  # Of the windows, in bytes; see `cut`.
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, exclude: str | None = None):
        self._path = path
        excluded = Path(exclude).resolve() if exclude else None
        if excluded is not None and excluded == path.resolve():
            raise InputError(
                f"data.name: {path} is the run's own directory too; accepted: one elsewhere or inside it"
            )
        if path.is_file():
            self._texts = _held_out_tenth(_Joined.of([path]))
        elif path.is_dir():
            files = _files(path, excluded)
            parts, self.notes = _parts(path, files)
            if parts is None:
                self._texts = _held_out_tenth(_Joined.of(files))
            else:
                self._texts = {split: _Joined.of(parts[split]) for split in SPLITS}
        else:
            raise InputError(f"data.name: no file or folder {path}; accepted: text:PATH of one")
        for split, text in self._texts.items():
            if not len(text):
                raise InputError(
                    f"data.name: the {split} text of {path} is empty; accepted: some bytes of it"
                )

    @classmethod
    def standard_library(cls) -> "Text":
        """The modules at the top of the standard library of the Python that runs, as source code."""
        text = cls.__new__(cls)
        text._path = Path(sysconfig.get_path("stdlib"))
        text._texts = _held_out_tenth(_Joined.of(sorted(text._path.glob("*.py"))))
        return text

    @property
    def splits(self) -> dict[str, int]:
        """Windows of each split; single bytes while their length is open. One where there is none: `load` says why."""
        return {split: max(1, self._windows(split).count) for split in SPLITS}

    def info(self, name: str) -> DatasetInfo:
        """What it holds; of a text whose windows have no length yet `num_examples` counts bytes."""
        counts = {split: len(text) for split, text in self._texts.items()}
        info = DatasetInfo(name, num_examples=counts, tokens=BYTES, fingerprint=self._fingerprint())
        return info if self._length is None else info.cut(self._length)

    def _fingerprint(self) -> str:
        files = [(split, path) for split, text in self._texts.items() for path in text.paths]
        return digest(
            [digest_of_files(self._path, (path for _, path in files)), *(split for split, _ in files)]
        )

    def cut(self, length: int) -> "Text":
        """The same text in windows of so many bytes.

        Raises:
          InputError: a training text that is shorter than a window.
        """
        text = copy.copy(self)
        text._length = length
        text.load("train")
        return text

    def load(self, split: str) -> Source:
        """The windows of a split: all that there are for training, those that follow each other for testing.

        Raises:
          InputError: a text that is shorter than a window.
        """
        windows = self._windows(split)
        if windows.count < 1:
            raise InputError(
                f"data.name: the {split} text of {self._path} has {len(self._texts[split]):,} bytes; accepted: at least "
                f"{windows.length:,}, the window that model.num_positions asks for"
            )
        return windows

    def _windows(self, split: str) -> "_Windows":
        text, length = self._texts[split], self._length or 1
        if split == "test":
            return _Windows(text, length, length, len(text) // length)
        starts = len(text) - length + 1
        stride = max(1, -(-starts // _MAX_STARTS))
        return _Windows(text, length, stride, -(-starts // stride))


@dataclasses.dataclass(frozen=True)
class _Joined:
    """Bytes `[start, stop)` of files that stand one after the other; read from disk when they are asked for."""

    paths: tuple[Path, ...]
    ends: np.ndarray
    start: int
    stop: int

    @classmethod
    def of(cls, paths: list[Path]) -> "_Joined":
        ends = np.cumsum([path.stat().st_size for path in paths], dtype=np.int64)
        return cls(tuple(paths), ends, 0, int(ends[-1]) if len(paths) else 0)

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, offset: int, count: int) -> np.ndarray:
        """uint8 `[count]` from `offset` on."""
        position, parts = self.start + offset, []
        file = int(np.searchsorted(self.ends, position, side="right"))
        while count:
            begin = int(self.ends[file - 1]) if file else 0
            taken = min(count, int(self.ends[file]) - position)
            part = np.fromfile(self.paths[file], np.uint8, taken, offset=position - begin)
            if len(part) < taken:
                raise InputError(f"{self.paths[file]}: the file has become shorter since it was opened")
            parts.append(part)
            position, count, file = position + taken, count - taken, file + 1
        return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class _Windows:
    text: _Joined
    length: int
    stride: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"tokens": self.text.read(index * self.stride, self.length)}


def _held_out_tenth(text: _Joined) -> dict[str, _Joined]:
    cut = len(text) - len(text) // 10
    return {
        "train": dataclasses.replace(text, stop=cut),
        "test": dataclasses.replace(text, start=cut),
    }


def _parts(folder: Path, files: list[Path]) -> tuple[dict[str, list[Path]] | None, tuple[str, ...]]:
    """The files to train and to test on, by the names of the folders or files at the top; None where these do not say. And
    what was decided, in sentences, where there was a choice.

    Folders count by their whole name. Files count where each says its split (README and LICENSE aside): those of source code
    may be called test.py.
    """
    by_name: dict[str, list[Path]] = {
        name: [] for name in ("train", *TEST_SPLITS) if (folder / name).is_dir()
    }
    for file in files:
        top = file.relative_to(folder).parts[0]
        aside = file.parent == folder and re.match(r"(?i)readme|licen[sc]e|copying|notice", top)
        split = top.lower() if file.parent != folder else split_of(top)
        by_name.setdefault(
            "" if aside else split if split in ("train", *TEST_SPLITS) else "other", []
        ).append(file)
    test = next((name for name in TEST_SPLITS if name in by_name), None)
    if test is None or "train" not in by_name:
        return None, ()
    in_folders = (folder / "train").is_dir()
    if "other" in by_name and not in_folders:
        note = (
            f"text:{folder}: all files are read as one text, train and {test} too; the last tenth is held out"
        )
        return None, (note,)
    others = [name for name in by_name if name not in ("train", test)]
    count = sum(len(by_name[name]) for name in others)
    notes = (
        (f"text:{folder}: train is trained on, {test} tested on; {count:,} other files are left out",)
        if count
        else ()
    )
    return {"train": by_name["train"], "test": by_name[test]}, notes


def _files(folder: Path, excluded: Path | None) -> list[Path]:
    """All files below a folder but hidden ones and those of the excluded folder, by path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    if excluded is not None:
        files = (path for path in files if not path.resolve().is_relative_to(excluded))
    parts = (path.relative_to(folder).parts for path in files)
    return sorted(folder.joinpath(*names) for names in parts if not any(name[0] == "." for name in names))
