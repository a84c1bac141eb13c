"""What a person sees: tables, a progress bar on a terminal, plain lines elsewhere."""

import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# A file or a pipe has no width of its own; rich would take 80 columns and cut the tables.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)


def table(title: str, rows: Mapping[str, object]) -> None:
    """Two columns: name and value."""
    # As `Text`: names of files and of classes may hold brackets, which rich would read as markup.
    out = Table(title=Text(title), show_header=False, title_justify="left")
    for name, value in rows.items():
        out.add_row(Text(name), Text(str(value)))
    console.print(out)


def wide_table(title: str, columns: list[str], rows: list[list[object]]) -> None:
    """A table with a header."""
    out = Table(title=Text(title), title_justify="left")
    for name in columns:
        out.add_column(Text(name), justify="right")
    for row in rows:
        out.add_row(*(Text(str(value)) for value in row))
    console.print(out)


def human_bytes(count: float) -> str:
    """1536 → '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields `advance(count)` for `total` things: a live bar on a terminal, a line each ten seconds elsewhere."""
    if console.is_terminal:
        columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda count: bar.advance(task, count)
        return
    done, printed = 0, time.perf_counter()

    def advance(count: int) -> None:
        nonlocal done, printed
        done += count
        if time.perf_counter() - printed > 10:
            printed = time.perf_counter()
            console.print(f"{title}  {done:,}/{total:,}")

    yield advance


class TrainingProgress:
    """Progress of a run: a live bar on a terminal, a line per log elsewhere. Use as a context manager."""

    def __init__(self, total: int, start: int):
        self._total, self._start, self._began = total, start, time.perf_counter()
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[report]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("training", total=total, completed=start, report="compiling")

    def __enter__(self):
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """A step is done."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of the steps since the last log."""
        names = {
            "train/loss": "loss",
            "train/accuracy": "accuracy",
            "eval/loss": "test loss",
            "eval/accuracy": "test",
        }
        parts = [f"{short} {values[name]:.4f}" for name, short in names.items() if name in values]
        if "train/examples_per_second" in values:
            parts.append(f"{values['train/examples_per_second']:,.0f} examples/s")
            parts.append(f"{values['train/data_wait_fraction']:.0%} waiting for data")
        if "train/model_flops_utilization" in values:
            parts.append(f"{values['train/model_flops_utilization']:.0%} of peak flops")
        if self._bar:
            self._bar.update(self._task, completed=step, report="  ".join(parts))
            return
        if not parts:
            return
        if step > self._start:
            left = (time.perf_counter() - self._began) / (step - self._start) * (self._total - step)
            parts.append(f"ETA {datetime.timedelta(seconds=int(left))}")
        console.print(f"step {step}/{self._total}  " + "  ".join(parts))
