"""Checkpoints with Orbax: asynchronous, the best and the latest kept, an interrupted or damaged one never counted."""

import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN
from rich.text import Text

from crate_jax import InputError
from crate_jax.parallel import processes
from crate_jax.runs.console import console
from crate_jax.training import checksums
from crate_jax.training.state import TrainState

NO_SCORE = float("-inf")
# Names of checkpoints beside their steps.
LATEST, BEST = "latest", "best"
# What a disk may refuse a file for; Orbax and TensorStore pass it on as text.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
# Where a run that goes on puts checkpoints that it cannot use, beside `checkpoints`.
SET_ASIDE = "damaged"


class Checkpoints:
    """The checkpoints of a workdir, `checkpoints/<step>/`. Orbax writes to a temporary name and renames when complete.

    Several processes call every method together.

    Args:
      workdir: the folder of the run.
      create: whether it may be without checkpoints.
    Raises:
      InputError: no checkpoints, and `create` is False.
    """

    def __init__(self, workdir: Path, *, create: bool = True):
        self.directory = Path(workdir).absolute() / "checkpoints"
        if not create and not self.directory.is_dir():
            raise InputError(f"workdir: no checkpoints in {workdir}; give the --workdir of a training run")
        # Orbax logs dozens of lines a save, and hundreds when one fails; `_saving` says which and why. Tasks of a read that
        # fails are reported by asyncio, one by one.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._manager: ocp.CheckpointManager | None = None
        self._damaged: dict[int, str] = {}
        self._checked: set[int] = set()

    def steps(self) -> list[int]:
        """The steps in the folder, ascending, whether readable or not."""
        if not self.directory.is_dir():
            return []
        names = (path.name for path in self.directory.iterdir() if path.is_dir())
        # A folder called 007 is none that was saved, and steps are int32.
        return sorted(
            int(name) for name in names if name.isdecimal() and name == str(int(name)) and int(name) < 2**31
        )

    def latest(self) -> int | None:
        """The step of the newest checkpoint that is whole; None when there is none. Says which newer ones are not."""
        newest = step = self._newest()
        damaged = []
        while step >= 0 and self.damage(step) is not None:
            damaged.append(step)
            step = self._newest(below=step)
        if damaged and self._newest() > newest:
            # A run that goes on has deleted what was looked at, for it had saved a newer one.
            for number in damaged:
                del self._damaged[number]
            return self.latest()
        instead = f"step {step} is used instead" if step >= 0 else "there is none before it"
        for number in damaged:
            _say(f"{self.directory}: the checkpoint of {self._said(number)}; {instead}")
        return step if step >= 0 else None

    def _newest(self, below: float = float("inf")) -> int:
        """The newest step that process 0 sees, readable or not; -1 when there is none."""
        return processes.of_first(max((step for step in self.steps() if step < below), default=-1))

    def damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint, in words; None where nothing is. Each process reads its part of the files."""
        if step not in self._damaged and step not in self._checked:
            folder = self.directory / str(step)
            reason = processes.first_of_all(
                checksums.damage(folder, jax.process_index(), jax.process_count())
            )
            if reason is not None:
                self._damaged[step] = reason
                return reason
            self._checked.add(step)
            if not (folder / checksums.LIST).exists():
                _say(f"{folder} is of an older version, without checksums: damage to it would not be found")
        return self._damaged.get(step)

    def find(self, which: str) -> int:
        """The step of the checkpoint that "latest", "best" or a step names; only for "latest" is an older one taken.

        The best one has the highest score of those that were evaluated while training.

        Raises:
          InputError: there is no such checkpoint, with the names of those that there are, or it is damaged.
        """
        kept = self.steps()
        if not kept:
            raise InputError(f"--workdir: {self.directory.parent} holds no complete checkpoint yet")
        if which == LATEST:
            step = self.latest()
            if step is None:
                raise InputError(
                    f"--workdir: no checkpoint in {self.directory} is whole: {'; '.join(map(self._said, kept))}"
                )
            return step
        scores = {step: self._score(step) for step in kept}
        best = max(kept, key=scores.get)
        names = {LATEST: kept[-1]}
        if scores[best] != NO_SCORE:
            names[BEST] = best
        names |= {str(step): step for step in kept}
        if which not in names:
            raise InputError(
                f"--checkpoint: found {which}; accepted in {self.directory.parent}: {', '.join(names)}"
            )
        step = names[which]
        if self.damage(step) is not None:
            raise InputError(f"--checkpoint: in {self.directory} {self._said(step)}; accepted: another one")
        return step

    def start_saving(self) -> None:
        """Make ready for `save`: damaged checkpoints are set aside, and what an interrupted save has left is removed."""
        unusable = [step for step in self.steps() if step in self._damaged or self._unreadable(step)]
        processes.wait("checkpoints looked at")
        if processes.is_first():
            for step in unusable:
                self._set_aside(step)
        processes.wait("checkpoints set aside")
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        handlers.add("default", ocp.args.StandardSave, checksums.SummingHandler())
        best = {"get_metric_fn": lambda metrics: metrics["score"], "n": 1}
        self._manager = ocp.CheckpointManager(
            self.directory,
            handler_registry=handlers,
            options=ocp.CheckpointManagerOptions(
                best_fn=best["get_metric_fn"],
                preservation_policy=AnyPreservationPolicy(
                    [LatestN(1), BestN(**best, keep_checkpoints_without_metrics=False)]
                ),
                cleanup_tmp_directories=True,
                temporary_path_class=checksums.SummedPath,
            ),
        )

    @property
    def last_saved(self) -> int | None:
        """The step of the last complete checkpoint, once saving has started; None when there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, score: float | None) -> None:
        """Start saving; returns when the arrays are copied, before they are written.

        Args:
          state: the state at `step`.
          score: the higher the better; None when the state was not evaluated.
        """
        if step == self.last_saved:
            return
        metrics = {"score": NO_SCORE if score is None else float(score)}
        with self._saving():
            self._manager.save(
                step,
                args=ocp.args.StandardSave(_as_dict(state)),
                metrics=metrics,
                custom_metadata=checksums.about(step),
                force=True,
            )

    def restore(self, abstract: TrainState, step: int) -> TrainState:
        """The state at `step`, placed as `abstract` says.

        Raises:
          InputError: the checkpoint holds other arrays than `abstract`, or another step.
        """
        target = _as_dict(abstract)
        restored = self._restore(step, ocp.StandardCheckpointHandler(), ocp.args.StandardRestore(target))
        self._check_step(step, restored["step"])
        return TrainState(**restored)

    def restore_params(self, abstract_params: Any, step: int, *, averaged: bool) -> Any:
        """Only the parameters, placed as asked: the current ones, or their moving average.

        Raises:
          InputError: as `restore`.
        """
        name = "ema" if averaged else "params"
        target = {name: abstract_params, "step": np.zeros((), np.int32)}
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        asked = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
        restored = self._restore(step, ocp.PyTreeCheckpointHandler(), asked)
        self._check_step(step, restored["step"])
        return restored[name]

    def wait(self) -> None:
        """Block until the last save is complete.

        Raises:
          OSError: it could not be written; the one before it is still there.
        """
        if self._manager is not None:
            with self._saving():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish pending saves and release the threads; raises as `wait`."""
        if self._manager is not None:
            with self._saving():
                self._manager.close()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Say in one line what goes wrong with a save, and remove what it has left: the disk may be full."""
        try:
            yield
        except Exception as error:
            found = error
            while not isinstance(found, OSError) and (found.__cause__ or found.__context__) is not None:
                found = found.__cause__ or found.__context__
            said = next((number for number in DISK_ERRORS if os.strerror(number) in str(error)), None)
            if said is None and not isinstance(found, OSError):
                raise
            if processes.is_first():
                for left in self.directory.glob("*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(left, ignore_errors=True)
            number = said or getattr(found, "errno", None) or errno.EIO
            raise OSError(number, os.strerror(number), str(self.directory)) from error

    def _restore(self, step: int, handler: ocp.CheckpointHandler, asked: Any) -> Any:
        """What a handler reads of a checkpoint; the files are its own, no list of checkpoints is needed."""
        folder = self.directory / str(step)
        checkpointer = ocp.Checkpointer(handler)
        try:
            return checkpointer.restore(folder / "default", args=asked)
        except Exception as error:
            # A run that trains deletes old ones, file by file: Orbax says so by errors of any kind.
            if not folder.is_dir() or checksums.damage(folder) is not None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder)) from None
            if not isinstance(error, ValueError | KeyError):  # Of what differs Orbax says it in many lines.
                raise
            checked = (folder / checksums.LIST).exists()
            raise InputError(
                f"--workdir: the checkpoint of step {step} in {self.directory} holds another state (optimizer, ema_decay or "
                f"metrics changed?){'' if checked else ' or is damaged'}; start with the old settings or give another "
                "--workdir"
            ) from error
        finally:
            checkpointer.close()

    def _check_step(self, step: int, found: Any) -> None:
        if int(found) != step:
            raise InputError(
                f"--workdir: {self.directory / str(step)} is a copy of step {int(found)}; remove it"
            )

    def _score(self, step: int) -> float:
        """How good it was; NO_SCORE where that cannot be read or was not measured."""
        return NO_SCORE if self._unreadable(step) else self._metrics(step)["score"]

    def _unreadable(self, step: int) -> bool:
        try:
            return not isinstance(self._metrics(step)["score"], float | int)
        except (OSError, ValueError, KeyError, TypeError):
            return True

    def _metrics(self, step: int) -> dict:
        return json.loads((self.directory / str(step) / "metrics" / "metrics").read_text(encoding="utf-8"))

    def _said(self, step: int) -> str:
        return f"step {step} is damaged ({self._damaged[step]})"

    def _set_aside(self, step: int) -> None:
        folder = self.directory.parent / SET_ASIDE
        folder.mkdir(exist_ok=True)
        names = (str(step), *(f"{step}-{number}" for number in range(2, 10_000)))
        name = next(name for name in names if not (folder / name).exists())
        shutil.move(self.directory / str(step), folder / name)  # `checkpoints` may be a link to another disk.
        _say(f"the checkpoint of step {step} was moved to {folder / name}; remove it when it is not needed")


def _say(text: str) -> None:
    console.print(Text(text))


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in TrainState.__dataclass_fields__}
