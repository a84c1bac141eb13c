"""What a command prints: tables, and its progress as a bar on a terminal or as a few lines elsewhere."""

import contextlib
import datetime
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# Lines that a run prints where there is no terminal, of its training and of its evaluations.
LINES = {"train": 18, "eval": 10}
# The same for anything else that takes a while, and seconds between two of them.
PROGRESS_LINES, PROGRESS_SECONDS = 30, 10


class _Console(Console):
    """Rich's, for a stdout whose reader may go away, or whose disk may be full."""

    def print(self, *objects, **options) -> None:
        try:
            super().print(*objects, **options)
        except OSError as error:
            self._lost(f"stdout cannot be written ({error.strerror})")

    def on_broken_pipe(self) -> None:
        self._lost("nobody reads stdout any more")

    def _lost(self, what: str) -> None:
        """Say so on stderr; a run that trains is stopped and saved as by SIGTERM, all else ends."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: {what}; a run that trains is saved", file=sys.stderr, flush=True)
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            raise SystemExit(1)
        os.kill(os.getpid(), signal.SIGTERM)


def replace_what_cannot_be_encoded() -> None:
    """Print `?` for what the encoding of stdout and stderr does not have: a missing letter ends no run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


# Started with them closed (`>&-`), Python has none.
sys.stdout, sys.stderr = (
    stream or open(os.devnull, "w", encoding="utf-8") for stream in (sys.stdout, sys.stderr)
)

# Names of files and of classes may hold [brackets] and :words:, which rich would read as markup and as emoji. A file or a
# pipe has no width of its own; rich would take 80 columns and cut the tables.
_WIDTH = None if sys.stdout.isatty() else 140
console = _Console(markup=False, emoji=False, highlight=False, soft_wrap=True, width=_WIDTH)


def table(title: str, rows: Mapping[str, object]) -> None:
    """Two columns: name and value."""
    # As `Text`, which is never read as markup, whatever the console does.
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
    """Yields `advance(count)` for `total` things: a live bar on a terminal, elsewhere at most a line every ten seconds."""
    if console.is_terminal:
        columns = TextColumn(title, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda count: bar.advance(task, count)
        return
    done, said, printed = 0, 0, time.perf_counter()

    def advance(count: int) -> None:
        nonlocal done, said, printed
        done += count
        if time.perf_counter() - printed > PROGRESS_SECONDS and done - said >= total / PROGRESS_LINES:
            said, printed = done, time.perf_counter()
            console.print(f"{title}  {done:,}/{total:,}")

    yield advance


class TrainingProgress:
    """Progress of a run: a live bar on a terminal, elsewhere some thirty lines however often the run logs. Use as a context
    manager.
    """

    def __init__(self, total: int, start: int):
        self._total, self._start, self._began = total, start, time.perf_counter()
        self._next_line = dict.fromkeys(LINES, start)
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
        if not parts or not self._is_due("train" if "train/loss" in values else "eval", step):
            return
        if step > self._start:
            left = (time.perf_counter() - self._began) / (step - self._start) * (self._total - step)
            parts.append(f"ETA {datetime.timedelta(seconds=int(left))}")
        console.print(f"step {step}/{self._total}  " + "  ".join(parts))

    def _is_due(self, kind: str, step: int) -> bool:
        """Whether a line of this kind is printed: the first and the last are, and others at equal distances."""
        if step < self._next_line[kind] and step != self._total:
            return False
        self._next_line[kind] = step + (self._total - self._start) / LINES[kind]
        return True
