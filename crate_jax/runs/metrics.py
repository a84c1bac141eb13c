"""Where numbers go: `metrics.jsonl` always, TensorBoard when tensorboardX is importable, wandb when asked for."""

import importlib.util
import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from crate_jax import InputError
from crate_jax.data import files
from crate_jax.parallel import processes
from crate_jax.parallel.feed import Feed
from crate_jax.runs.console import console


class MetricsWriter:
    """Appends one JSON object a line to `metrics.jsonl`; a line is one write, so a killed run leaves at most one torn.

    Of several processes only the first writes.

    Args:
      workdir: where the file lies.
      resume_step: lines past this step are removed: the run is about to write them again.
      wandb_project: a Weights & Biases project, or None.
    """

    def __init__(self, workdir: Path, *, resume_step: int, wandb_project: str | None = None):
        self.path = Path(workdir) / "metrics.jsonl"
        self._file = self._tensorboard = self._wandb = None
        if not processes.is_first():
            return
        keep = [
            line for line in read_metrics(self.path) if line["step"] <= resume_step and not line.get("final")
        ]
        if self.path.exists():
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in keep))
        self._file = self.path.open("a", encoding="utf-8")
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(str(workdir))
        if wandb_project is not None:
            import wandb

            self._wandb = wandb.init(
                project=wandb_project,
                dir=str(workdir),
                id=_wandb_id(Path(workdir), resumed=resume_step > 0),
                name=Path(workdir).absolute().name,
                resume="allow",
            )

    def write(self, step: int, values: Mapping[str, float | bool]) -> None:
        """One line: the step and the values."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        numbers = {k: v for k, v in values.items() if not isinstance(v, bool)}
        if self._tensorboard:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        """Flush everything to disk."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


def check_wandb(project: str | None) -> None:
    """Raise where a run is to be logged to Weights & Biases, and cannot be.

    Raises:
      InputError: the package is not installed.
    """
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise InputError(
            f"wandb: found {project!r}, but the package wandb is not installed; accepted: pip install wandb"
        )


def _wandb_id(workdir: Path, *, resumed: bool) -> str:
    """The run's own name there, kept in its folder: folders of one name, such as seed0, are many."""
    path, name = workdir / "wandb_id", workdir.absolute().name
    if not path.is_file():
        # Runs of older versions have the name of their folder.
        write_atomically(path, name if resumed else f"{name}-{secrets.token_hex(4)}")
    return path.read_text(encoding="utf-8").strip()


class ThroughputWindow:
    """Wall-clock figures of the steps since the last log.

    Args:
      step: the first one.
      feed: where batches come from; it counts the seconds that were spent waiting for them.
      step_flops: flops of a step's matrix products on all devices, recomputation left out.
      peak_flops: what all devices could do per second; None: not known, and their utilisation is not reported.
    """

    def __init__(self, step: int, feed: Feed, *, step_flops: int = 0, peak_flops: float | None = None):
        self._began = self._start = time.perf_counter()
        self._utilization = step_flops / peak_flops if peak_flops else None
        self._step, self._feed, self._waited = step, feed, feed.waited

    def restart(self, step: int, batch_size: int) -> dict[str, float]:
        """The figures up to `step`; the next window starts now."""
        now = time.perf_counter()
        span = now - self._start
        values = {
            "train/examples_per_second": (step - self._step) * batch_size / span,
            "train/data_wait_fraction": (self._feed.waited - self._waited) / span,
            "seconds": now - self._began,
        }
        if self._utilization is not None:
            values["train/model_flops_utilization"] = (step - self._step) * self._utilization / span
        self._start, self._step, self._waited = now, step, self._feed.waited
        return values


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics file; a torn one, left by a killed run, or one that is no object of numbers with a step, is
    skipped.
    """
    lines = []
    if Path(path).exists():
        for text in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and type(line.get("step")) is int:
                if all(isinstance(value, int | float) for value in line.values()):
                    lines.append(line)
    return lines


def write_if_possible(path: Path, content: str | bytes) -> bool:
    """As `write_atomically`, its folder made; a folder that cannot be written is one line: what was printed counts."""
    try:
        if processes.is_first():
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        console.print(f"not written: {path} ({error.strerror})")
        return False
    return True


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, see `files.whole`.

    Of several processes only the first writes.
    """
    if not processes.is_first():
        return
    with files.whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
