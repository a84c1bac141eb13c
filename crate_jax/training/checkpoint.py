"""Checkpoints with Orbax: asynchronous, the best and the latest kept, an interrupted one never counted."""

import logging
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from crate_jax import InputError
from crate_jax.training.state import TrainState

NO_SCORE = float("-inf")
# Names of checkpoints beside their steps.
LATEST, BEST = "latest", "best"


class Checkpoints:
    """The checkpoints of a workdir, `checkpoints/<step>/`. Orbax writes to a temporary name and renames when complete."""

    def __init__(self, workdir: Path, *, create: bool = True):
        self.directory = Path(workdir).absolute() / "checkpoints"
        if not create and not self.directory.is_dir():
            raise InputError(f"workdir: no checkpoints in {workdir}; give the --workdir of a training run")
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs dozens of lines a save.
        best = {"get_metric_fn": lambda metrics: metrics["score"], "n": 1}
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=create,
                best_fn=best["get_metric_fn"],
                preservation_policy=AnyPreservationPolicy(
                    [LatestN(1), BestN(**best, keep_checkpoints_without_metrics=False)]
                ),
                cleanup_tmp_directories=create,
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """The last complete checkpoint's step; None when there is none."""
        return self._manager.latest_step()

    def find(self, which: str) -> int:
        """The step of the checkpoint that "latest", "best" or a step names.

        The best one has the highest score of those that were evaluated while training.

        Raises:
          InputError: there is no such checkpoint; the message names those that there are.
        """
        kept = sorted(self._manager.all_steps())
        if not kept:
            raise InputError(f"--workdir: {self.directory.parent} holds no complete checkpoint yet")
        scores = {step: self._manager.metrics(step)["score"] for step in kept}
        best = max(kept, key=scores.get)
        names = {LATEST: kept[-1]}
        if scores[best] != NO_SCORE:
            names[BEST] = best
        names |= {str(step): step for step in kept}
        if which not in names:
            raise InputError(
                f"--checkpoint: found {which}; accepted in {self.directory.parent}: {', '.join(names)}"
            )
        return names[which]

    def save(self, state: TrainState, step: int, score: float | None) -> None:
        """Start saving; returns when the arrays are copied, before they are written.

        Args:
          state: the state at `step`.
          score: the higher the better; None when the state was not evaluated.
        """
        if step == self.latest_step:
            return
        metrics = {"score": NO_SCORE if score is None else float(score)}
        self._manager.save(step, args=ocp.args.StandardSave(_as_dict(state)), metrics=metrics, force=True)

    def restore(self, abstract: TrainState, step: int) -> TrainState:
        """The state at `step`, placed as `abstract` says.

        Raises:
          InputError: the checkpoint holds other arrays than `abstract`.
        """
        try:
            restored = self._manager.restore(step, args=ocp.args.StandardRestore(_as_dict(abstract)))
        except ValueError as error:  # Orbax compares the two in many lines.
            raise InputError(
                f"--workdir: the checkpoint of step {step} in {self.directory} holds another state (optimizer, ema_decay or "
                "metrics changed?); start with the old settings or give another --workdir"
            ) from error
        return TrainState(**restored)

    def restore_params(self, abstract_params: Any, step: int, *, averaged: bool) -> Any:
        """Only the parameters, placed as asked: the current ones, or their moving average."""
        name = "ema" if averaged else "params"
        target = {name: abstract_params}
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        return self._manager.restore(
            step,
            args=ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True),
        )[name]

    def wait(self) -> None:
        """Block until the last save is complete; raises what went wrong in it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish pending saves and release the threads."""
        self._manager.close()


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in TrainState.__dataclass_fields__}
