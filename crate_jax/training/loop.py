"""The training loop: it takes steps, saves them and hands numbers to the writer. Reports are its caller's business.

What `train` guarantees:

* The state after step s depends on the configuration, the mesh and s alone: batches and random keys follow from (seed, s),
  and the sums behind the logged means are part of the state, so a run in two parts is the run in one, bit for bit.
* The device does not wait for the host: up to STEPS_IN_FLIGHT steps run while the host reads the numbers of an older one.
* Everything that can be refused is refused before anything is written: the workdir of another run is left as it was.
* Only complete checkpoints count, and a resumed run rewrites the lines of `metrics.jsonl` after the step it resumes from.
* A loss or gradient that is not finite never changes the state and is never saved.
* When `train` returns, its last step is saved.
"""

import collections
import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import jax

from crate_jax import InputError
from crate_jax.models import Params
from crate_jax.parallel import processes
from crate_jax.parallel.feed import Feed
from crate_jax.parallel.sharding import shard_batch
from crate_jax.runs import builtin, workdir
from crate_jax.runs.config import Duration
from crate_jax.runs.console import TrainingProgress, console
from crate_jax.runs.metrics import MetricsWriter, ThroughputWindow, read_metrics
from crate_jax.training import evaluation, steps
from crate_jax.training.building import Run
from crate_jax.training.checkpoint import LATEST, Checkpoints
from crate_jax.training.program import compile_program, make_schedule
from crate_jax.training.restoring import warm_start
from crate_jax.training.state import TrainState
from crate_jax.training.summary import print_summary

# Enough to hide the host's work; few enough for forced host devices, whose collectives deadlock when many steps are queued.
STEPS_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Reader:
    """Numbers about the parameters, beside loss and evaluation.

    Attributes:
      every: how often they are read while training; None: never.
      read: `read(params)` gives them by name, as they stand in `metrics.jsonl`.
    """

    every: Duration | None
    read: Callable[[Params], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Result:
    """How a start of a run ended.

    Attributes:
      state: the last one, which is saved.
      values: the final evaluation, `eval/…`; None when a signal stopped the run before its last step.
    """

    state: TrainState
    values: dict[str, float] | None

    @property
    def stopped(self) -> bool:
        """Whether a signal stopped the run before its end; started again with its workdir it goes on."""
        return self.values is None


def train(run: Run, readers: Sequence[Reader] = ()) -> Result:
    """Train to the end, or until SIGTERM or Ctrl-C; a run whose workdir holds a checkpoint goes on from there.

    Args:
      run: from `starting.start_run`.
      readers: what is read off the parameters while training.
    Raises:
      InputError: bad input, found before training starts (an unreadable image: when it is read).
      FloatingPointError: the loss or a gradient was not finite.
    """
    for change in workdir.check(run.workdir, run.config, run.info):
        console.print(f"changed since the last start: {change}")
    with jax.set_mesh(run.mesh):
        loop = _Loop(run, readers)
        try:
            return loop.run_to_end()
        finally:
            # With several processes, report a failure now: the others have stopped, and saving needs them all.
            if sys.exc_info()[0] is None or not processes.several():
                loop.close()


class _Loop:
    """One start of a run."""

    def __init__(self, run: Run, readers: Sequence[Reader]):
        self.run = run
        self.batches = run.data.train_batches()
        self.eval_batches = run.data.eval_batches(run.data.source("test"))
        self.program = compile_program(run, self.batches.example())
        self.total_steps, self.log_steps = self.program.total_steps, self.program.log_steps
        self.eval_steps, self.checkpoint_steps = run.steps(run.config.eval), run.steps(run.config.checkpoint)
        self.readers = [(run.steps(reader.every), reader.read) for reader in readers]
        self.eval_step = steps.make_eval_step(run.model, run.task, run.mesh, run.compiler_options)
        self.in_flight: collections.deque = collections.deque()
        self.stop_requested = False
        self.checkpoints = Checkpoints(run.workdir)
        self.start_step = self.checkpoints.find(LATEST) if self.checkpoints.steps() else 0
        if not self.start_step:
            self._say_what_is_written_again()
        self.writer: MetricsWriter | None = None

    def close(self) -> None:
        """Finish what is being written."""
        if self.writer is not None:
            self.writer.close()
        self.checkpoints.close()

    def run_to_end(self) -> Result:
        run, program = self.run, self.program
        print_summary(run, program.abstract, program.train_step, self.total_steps, self.start_step)
        if self.start_step:
            self._say_what_a_new_length_means()
        current = self._first_state()
        # Not before: a state that cannot be restored leaves the folder as it was.
        workdir.write(run.workdir, run.config, run.info, run.palette)
        self.checkpoints.start_saving()
        self.writer = MetricsWriter(run.workdir, resume_step=self.start_step, wandb_project=run.config.wandb)
        current = self._take_steps(current)
        if self.stop_requested and int(current.step) < self.total_steps:
            return Result(current, None)
        values = self._evaluate(current)
        self._check_usable(current, int(current.step), values)
        self.writer.write(int(current.step), {**values, "final": True})
        return Result(current, values)

    def _say_what_is_written_again(self) -> None:
        """Of a run that starts at step 0 in a folder with metrics: it was killed before its first save.

        Raises:
          InputError: it was not, for it went on for so long that it had saved.
        """
        lines = read_metrics(self.run.workdir / "metrics.jsonl")
        if not lines:
            return
        before = dataclasses.replace(self.run, config=workdir.read_config(self.run.workdir))
        every, last = before.steps(before.config.checkpoint), lines[-1]["step"]
        # While a checkpoint is written the run goes on, but not past the next one.
        if lines[-1].get("final") or (every and last >= 2 * every):
            raise InputError(workdir.NO_CHECKPOINTS.format(self.run.workdir))
        console.print(
            f"no checkpoint was saved yet: the run starts anew, its metrics up to step {last} are written again"
        )

    def _say_what_a_new_length_means(self) -> None:
        """Of a run that goes on: the learning rate before and after; or that it is past its end."""
        before = dataclasses.replace(self.run, config=workdir.read_config(self.run.workdir))
        total, step = before.steps(before.config.total), self.start_step
        if step > self.total_steps:
            console.print(f"step {step} is past the end, {self.total_steps}: nothing is trained")
        elif total != self.total_steps and step < self.total_steps:
            old, new = float(make_schedule(before)(step)), float(self.program.schedule(step))
            console.print(
                f"the run had {total} steps, has {self.total_steps}: the learning rate after step {step} was {old:.3g}, is "
                f"{new:.3g}"
            )

    def _first_state(self) -> TrainState:
        """The last one saved, or a new one."""
        if self.start_step:
            return self.checkpoints.restore(self.program.abstract, self.start_step)
        current = self.program.initial_state(self.run)
        if self.run.config.init_from is not None:
            current = warm_start(current, builtin.locate(self.run.config.init_from), self.run)
        return current

    def _take_steps(self, current: TrainState) -> TrainState:
        feed = Feed(self.batches.iterate(self.start_step), self.run.mesh)
        self.window = ThroughputWindow(
            self.start_step, feed, step_flops=self.program.step_flops, peak_flops=self.program.peak_flops
        )
        progress = TrainingProgress(self.total_steps, self.start_step)
        try:
            with processes.StopSignals() as signals, progress as self.progress:
                for step in range(self.start_step + 1, self.total_steps + 1):
                    try:
                        batch = next(feed)
                    except InputError as error:
                        self._save_before(error, current)
                    with jax.transfer_guard("disallow"):
                        current, report = self.program.train_step(current, batch)
                    self.in_flight.append((step, report))
                    self._settle(current, keep=STEPS_IN_FLIGHT)
                    self.stop_requested = signals.stop_after(step)
                    self._do_what_is_due(current, step)
                    if self.stop_requested:
                        break
        finally:
            feed.close()
        self.checkpoints.wait()
        return current

    def _save_before(self, error: InputError, current: TrainState) -> NoReturn:
        """Data that cannot be read end the run: what was trained until then is saved first.

        Of several processes only those stop that meet such data, and saving needs them all.
        """
        step = int(current.step)
        if processes.several() or step == self.start_step or bool(current.halted):
            raise error
        self._settle(current, keep=0)
        self._check_usable(current, step, {})
        self.checkpoints.save(current, step, None)
        self.checkpoints.wait()
        raise InputError(f"{error}; the run is saved at step {step}") from error

    def _settle(self, current: TrainState, *, keep: int) -> None:
        """Wait until at most `keep` steps are in flight, and log those that are due. Nothing waits for the newest step."""
        while len(self.in_flight) > keep:
            step, report = self.in_flight.popleft()
            jax.block_until_ready(report)
            self.progress.advance(step)
            if step % self.log_steps and step != self.total_steps:
                continue
            report = jax.device_get(report)
            if report["halted"]:
                self._raise_nonfinite(current)
            steps_summed = (step - 1) % self.log_steps + 1
            values = {f"train/{name}": float(total) / steps_summed for name, total in report["sums"].items()}
            values["train/learning_rate"] = float(self.program.schedule(step - 1))
            values |= self.window.restart(step, self.run.config.batch_size)
            self.writer.write(step, values)
            self.progress.log(step, values)

    def _do_what_is_due(self, current: TrainState, step: int) -> None:
        """Readings, evaluation and checkpoint of this step."""

        def due(every: int) -> bool:
            return bool(every) and step % every == 0

        readings = [read for every, read in self.readers if due(every)]
        last = step == self.total_steps or self.stop_requested
        evaluates, saves = due(self.eval_steps), due(self.checkpoint_steps) or last
        if not (readings or evaluates or saves):
            return
        self._settle(current, keep=0)
        if bool(current.halted):
            self._raise_nonfinite(current)
        values = {}
        for read in readings:
            values |= read(current.eval_params)
        if evaluates:
            values |= self._evaluate(current)
            self.progress.log(step, values)
        if values:
            self.writer.write(step, values)
        if saves:
            # Before a save replaces anything: the last update may have made the parameters unusable.
            self._check_usable(current, step, values)
            score = values.get("eval/accuracy", -values["eval/loss"]) if evaluates else None
            self.checkpoints.save(current, step, score)

    def _evaluate(self, current: TrainState) -> dict[str, float]:
        means = evaluation.evaluate(self.eval_step, current.eval_params, self.eval_batches, self.run.mesh)
        return {f"eval/{name}": value for name, value in means.items()}

    def _raise_nonfinite(self, current: TrainState) -> None:
        """The state stopped moving at the bad step, and the batch is a function of the step: look at it again."""
        run, step = self.run, int(current.step)
        where = steps.find_nonfinite(
            run.model,
            run.task,
            current.params,
            current.ema,
            shard_batch(self.batches.batch(step), run.mesh),
            jax.random.fold_in(jax.random.key(run.config.seed), step),
            run.mesh,
            accumulate=run.config.accumulate,
        )
        self._fail(f"step {step + 1}: non-finite value, first in {where}")

    def _check_usable(self, current: TrainState, step: int, values: Mapping[str, float]) -> None:
        """Raise where parameters, or the loss of an evaluation of them, are not finite."""
        unusable = steps.find_unusable(current, self.run.mesh)
        if unusable is not None:
            self._fail(f"step {step}: {unusable} is not finite after the update, and is not saved")
        if not math.isfinite(values.get("eval/loss", 0.0)):
            self._fail(f"step {step}: eval/loss is {values['eval/loss']}")

    def _fail(self, what: str) -> NoReturn:
        self.checkpoints.wait()
        good = self.checkpoints.last_saved
        kept = "no checkpoint was saved yet" if good is None else f"the last checkpoint is step {good}"
        raise FloatingPointError(
            f"{what}; {kept}. A lower optimizer.lr, a longer warmup or optimizer.clip_norm often cures it"
        )
