"""Making the sections of a report, and writing what they found: files under `report/` and a page, `report/index.html`."""

import contextlib
import dataclasses
import datetime
import json
import os
import platform
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

import crate_jax
from crate_jax import InputError
from crate_jax.parallel import processes
from crate_jax.parallel.sharding import MeshConfig, make_mesh
from crate_jax.reports import SECTIONS, Figure, Section, SectionResult, TrainedRun
from crate_jax.reports.page import render
from crate_jax.runs.config import to_config_dict
from crate_jax.runs.console import console, wide_table
from crate_jax.runs.metrics import read_metrics, write_atomically
from crate_jax.runs.workdir import without_none
from crate_jax.settings import one_of
from crate_jax.training.opening import Opened

PAGE = "index.html"
# What report.json holds of a section that was made.
MADE = {"name", "title", "text", "tables", "figures"}
# The console counts the pictures of a section that has more than this, and names the others.
SEVERAL = 3


@dataclasses.dataclass
class Outcome:
    """What became of a report.

    Attributes:
      written: title of a section → its files and notes, in words.
      failed: name of a section, or of the page → what went wrong, in one line that has been printed.
    """

    written: dict[str, str] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


def chosen(text: str | None) -> list[str]:
    """Names of sections, separated by commas; None means all.

    Raises:
      InputError: a name that is none of SECTIONS.
    """
    if text is None:
        return list(SECTIONS)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        one_of("--sections", name, SECTIONS)
    return names


def write_report(
    opened: Opened, sections: Sequence[str] | None = None, *, images: Path | None = None
) -> Outcome:
    """Make all sections that apply to a run, print their tables, and write `report/`; every process of the run calls this.

    A section that fails is one line and takes nothing else with it: a run that was trained must not be lost to its report.
    One that cannot be made, because the data are not here, is taken over from an earlier report of the same step.

    Args:
      opened: the run.
      sections: names of those to make; None: all. The others are taken over from an earlier report of the same step.
      images: a folder of images to look at in place of the run's test split, see `TrainedRun.examples`.
    """
    trained = TrainedRun(*opened, read_metrics(opened.run.workdir / "metrics.jsonl"), images)
    outcome, folder = Outcome(), trained.run.workdir / "report"
    earlier = _earlier(folder)
    made = []
    for name, section in SECTIONS.items():
        before = earlier.get(name)
        if sections is not None and name not in sections:
            made += [before] if before is not None and before.get("step") == trained.step else []
        elif section.uses_model or processes.is_first():
            one = _attempt(name, section, trained, before, outcome)
            made += [one] if one else []
    if processes.is_first():
        try:
            report = {"run": _about(trained), "sections": made}
            _write(folder / "report.json", json.dumps(report, indent=1) + "\n")
            _write(folder / PAGE, render(report, folder))
            outcome.written["report"] = str(folder / PAGE)
        except Exception as error:
            _fail(PAGE, error, outcome)
    return outcome


def _attempt(
    name: str, section: Section, trained: TrainedRun, earlier: dict[str, Any] | None, outcome: Outcome
) -> dict[str, Any] | None:
    """A section's part of `report.json`, with its files written; None where the section does not apply."""
    try:
        with _mesh(section, trained):
            result = section.make(trained)
        return None if result is None else _publish(name, result, trained, outcome)
    except InputError as error:
        console.print(f"report: {name} cannot be made: {error}")
        if earlier is not None and earlier.get("step") == trained.step:
            return {**earlier, "kept": f"Not made again: {error}"}
        return {"name": name, "title": name, "step": trained.step, "missing": str(error)}
    except Exception as error:
        _fail(name, error, outcome)
        about = {"failed": outcome.failed[name], "traceback": traceback.format_exc()}
        return {"name": name, "title": name, "step": trained.step, **about}


def _publish(name: str, result: SectionResult, trained: TrainedRun, outcome: Outcome) -> dict[str, Any]:
    """Print the tables, write the figures and the numbers."""
    folder, files = trained.run.workdir / "report", []
    for table in result.tables:
        wide_table(table.title, list(table.columns), [list(row) for row in table.rows])
    pictures = [*result.figures, *(figure for gallery in result.galleries for figure in gallery.figures)]
    for figure in pictures:
        _write(folder / figure.file, figure.image)
    if len(pictures) <= SEVERAL:
        files += [str(folder / figure.file) for figure in pictures]
    else:
        files.append(f"{len(pictures)} pictures, {folder / pictures[0].file} the first")
    if result.values is not None:
        _write(folder / f"{name}.json", json.dumps(result.values, indent=1) + "\n")
        files.append(str(folder / f"{name}.json"))
    outcome.written[result.title.lower()] = "; ".join([*files, *([result.note] if result.note else [])])
    return {
        "name": name,
        "title": result.title,
        "step": trained.step,
        "text": result.text,
        "values": result.values,
        "tables": [
            {**table._asdict(), "rows": [[str(cell) for cell in row] for row in table.rows]}
            for table in result.tables
        ],
        "figures": _without_bytes(result.figures),
        "galleries": [
            {
                "title": gallery.title,
                "axes": {name: [str(value) for value in values] for name, values in gallery.axes.items()},
                "figures": _without_bytes(gallery.figures),
            }
            for gallery in result.galleries
        ],
    }


def _without_bytes(figures: Sequence[Figure]) -> list[dict[str, str]]:
    return [{"file": each.file, "alt": each.alt, "caption": each.caption} for each in figures]


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, content)


def _fail(name: str, error: Exception, outcome: Outcome) -> None:
    lines = str(error).strip().splitlines()
    outcome.failed[name] = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    console.print(
        f"report: {name} failed ({outcome.failed[name]}); the run and the other sections are not affected",
    )


@contextlib.contextmanager
def _mesh(section: Section, trained: TrainedRun) -> Iterator[None]:
    """The run's mesh for what all processes do together; for what the first does alone, one device of its own."""
    mesh = trained.run.mesh
    if processes.several() and not section.uses_model:
        mesh = make_mesh(MeshConfig(), jax.local_devices()[:1])
    with jax.set_mesh(mesh):
        yield


def _about(trained: TrainedRun) -> dict[str, Any]:
    """What the page says of the run."""
    run = trained.run
    evaluation = {
        name.removeprefix("eval/"): value
        for name, value in trained.last_evaluation.items()
        if name.startswith("eval/")
    }
    return {
        "title": trained.title,
        "workdir": str(run.workdir),
        "step": trained.step,
        "finished": bool(trained.lines) and bool(trained.lines[-1].get("final", False)),
        "parameters": run.model.num_params,
        "task": run.config.task,
        "examples": run.info.num_examples,
        "evaluated_at_step": trained.last_evaluation.get("step"),
        "evaluation": evaluation,
        "made_on": {
            "crate_jax": crate_jax.__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
            "devices": f"{run.mesh.size} × {run.mesh.devices.flat[0].device_kind}",
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        },
        "command": _command(sys.argv),
        "config": without_none(to_config_dict(run.config).to_dict()),
    }


def _command(argv: Sequence[str]) -> str:
    """What was typed: `python -m crate_jax.NAME …`."""
    program = Path(argv[0])
    start = f"python -m crate_jax.{program.stem}" if program.parent.name == "crate_jax" else program.name
    return shlex.join([*start.split(), *argv[1:]])


def _earlier(folder: Path) -> dict[str, dict[str, Any]]:
    """The sections of the report that is there, by name; those that were not made are left out."""
    try:
        sections = json.loads((folder / "report.json").read_text(encoding="utf-8"))["sections"]
        return {section["name"]: section for section in sections if section.keys() >= MADE}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # None, or not one of ours: then all is made anew.
