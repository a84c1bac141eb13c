"""What a section of a report is, and what it is made from."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from crate_jax import InputError
from crate_jax.data import subset
from crate_jax.data.pipeline import Evaluation
from crate_jax.data.sources import Source
from crate_jax.models import Params
from crate_jax.training.building import Run


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run on disk, or one that has just been trained.

    Attributes:
      run: configuration, model, task and data.
      params: the parameters that evaluation uses, split over the run's mesh.
      step: the training step that they are of.
      lines: those of `metrics.jsonl`; empty for a run that was not trained here.
      images: a folder of images to look at in place of the run's own; None: its test split.
    """

    run: Run
    params: Params
    step: int
    lines: Sequence[dict[str, Any]]
    images: Path | None = None

    @property
    def title(self) -> str:
        """What was trained on what, such as "crate on digits"."""
        return f"{self.run.config.model.family} on {self.run.info.name}"

    @property
    def last_evaluation(self) -> dict[str, Any]:
        """The newest line up to this step that has a test loss: its `step`, values `eval/…`; empty where there is none."""
        lines = (line for line in reversed(self.lines) if "eval/loss" in line and line["step"] <= self.step)
        return next(lines, {})

    def examples(self, count: int) -> Source:
        """At most `count` examples to look at, spread evenly: of the folder `images` if one was given, else of the test
        split. They are as the model takes them; images of a folder have the label −1.

        Raises:
          InputError: the data are missing, or a folder that holds no images.
        """
        data = self.run.data
        return subset.spread(data.source("test") if self.images is None else data.images(self.images), count)

    def batches(self, source: Source, most: int = 64) -> Evaluation:
        """Every example of a source once, in batches of at most `most` (or one per device), however large those of the
        training are.
        """
        unit = self.run.mesh.size
        size = unit * -(-min(len(source), most) // unit)
        run = dataclasses.replace(self.run, config=dataclasses.replace(self.run.config, batch_size=size))
        return run.data.eval_batches(source)

    @property
    def examples_are(self) -> str:
        """What `examples` are, in words: "test examples" or "images of FOLDER"."""
        return "test examples" if self.images is None else f"images of {self.images}"

    def test_source(self) -> Source:
        """The test examples that `last_evaluation` was of.

        Raises:
          InputError: the data are missing, or others than were evaluated.
        """
        source, count = self.run.data.source("test"), self.last_evaluation["eval/count"]
        if len(source) != count:
            raise InputError(
                f"data.name: {self.run.config.data.name} has {len(source):,} test examples; accepted: the {count:,.0f} that "
                f"the run was evaluated on at step {self.last_evaluation['step']:,}"
            )
        return source


class Table(NamedTuple):
    """A table with a title over it; the first column names the rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


class Figure(NamedTuple):
    """A picture.

    Attributes:
      file: its name under `report/`, ending in `.svg` (drawings, see `analysis.figures.as_svg`) or `.png` (images).
      image: the bytes of that file.
      alt: what it shows, in words, for those who cannot see it.
      caption: a sentence under the picture; may be empty.
    """

    file: str
    image: bytes
    alt: str
    caption: str = ""


class Gallery(NamedTuple):
    """Pictures of which the page shows one at a time, chosen with a slider for each axis.

    Attributes:
      title: what is stepped through.
      axes: name of an axis → its values, such as `{"image": [1, 2, 3], "layer": [1, 2]}`.
      figures: one for each combination of values, the last axis changing fastest.
    """

    title: str
    axes: Mapping[str, Sequence[object]]
    figures: Sequence[Figure]


@dataclasses.dataclass(frozen=True)
class SectionResult:
    """What a section found.

    Attributes:
      title: a few words.
      text: what was measured, by which definition and on what.
      values: the numbers, for programs; written to `report/NAME.json` where `NAME` is the section's. None: no such file.
      tables: the same numbers for people.
      figures: written to `report/`.
      galleries: figures to step through, written to `report/` too.
      note: a few words for the last table that a training run prints; None: the names of the files.
    """

    title: str
    text: str
    values: dict[str, Any] | None = None
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    galleries: Sequence[Gallery] = ()
    note: str | None = None


class Section(NamedTuple):
    """A row of `reports.SECTIONS`.

    `make(trained)` returns the result, or None where the section does not apply to the run. With `uses_model` every process
    of the run calls it, since the parameters are split over all their devices; else the first process alone does.
    """

    make: Callable[[TrainedRun], SectionResult | None]
    uses_model: bool = False


def lower_by(value: float, other: float) -> str:
    """By which share `value` is lower than `other`, as text; a dash where the other is zero (text that repeats itself)."""
    return f"{1 - value / other:.1%}" if other else "–"
