"""Text as bytes: windows of one length from a file, a folder of files, or the sources of Python's own library.

The bytes of all files stand one after the other, in the order of their paths. Training windows may start anywhere; test
windows follow each other, so that each of their bytes is predicted once and the mean loss is a code length. Bytes at the end
that do not fill a window, fewer than one window has, belong to no test window and to no number.
"""

import dataclasses
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

from crate_jax import InputError
from crate_jax.data.dataset import SPLITS, DatasetInfo, Source

# Grain permutes indices below 2³².
_MAX_STARTS = 2**31


class Text:
    """A text that has been found: a file, or a folder with `train/` and `test/`; otherwise the last tenth is for testing."""

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
            if all((path / split).is_dir() for split in SPLITS):
                self._texts = {split: _Joined.of(_files(path / split, excluded)) for split in SPLITS}
            else:
                self._texts = _held_out_tenth(_Joined.of(_files(path, excluded)))
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

    def info(self, name: str) -> DatasetInfo:
        """What it holds; `num_examples` counts bytes, as the length of the windows is not known yet."""
        return DatasetInfo(
            name=name,
            image_size=0,
            channels=0,
            num_classes=0,
            class_names=(),
            max_value=255,
            num_examples={split: len(text) for split, text in self._texts.items()},
            kind="text",
        )

    def windows(self, split: str, length: int) -> Source:
        """The windows of a split: all that there are for training, those that follow each other for testing.

        Args:
          split: "train" or "test".
          length: bytes of a window.
        Raises:
          InputError: a text that is shorter than a window.
        """
        text = self._texts[split]
        starts = len(text) - length + 1
        if starts < 1:
            raise InputError(
                f"data.name: the {split} text of {self._path} has {len(text):,} bytes; accepted: at least {length:,}, the "
                "window that model.num_positions asks for"
            )
        if split == "test":
            return _Windows(text, length, length, len(text) // length)
        stride = -(-starts // _MAX_STARTS)
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
            parts.append(np.fromfile(self.paths[file], np.uint8, taken, offset=position - begin))
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
        return {"text": self.text.read(index * self.stride, self.length)}


def _held_out_tenth(text: _Joined) -> dict[str, _Joined]:
    cut = len(text) - len(text) // 10
    return {
        "train": dataclasses.replace(text, stop=cut),
        "test": dataclasses.replace(text, start=cut),
    }


def _files(folder: Path, excluded: Path | None) -> list[Path]:
    """All files below a folder but hidden ones and those of the excluded folder, by path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    if excluded is not None:
        files = (path for path in files if not path.resolve().is_relative_to(excluded))
    parts = (path.relative_to(folder).parts for path in files)
    return sorted(folder.joinpath(*names) for names in parts if not any(name[0] == "." for name in names))
