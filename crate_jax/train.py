"""Train a model; started again with the same workdir it goes on where it stopped."""

import collections
import dataclasses
import json
import sys
import tempfile
from collections.abc import Collection
from functools import partial
from pathlib import Path

import jax

from crate_jax import InputError
from crate_jax.analysis import figures, layerwise
from crate_jax.data import pipeline, subset
from crate_jax.parallel import chips, processes
from crate_jax.parallel.feed import Feed
from crate_jax.parallel.sharding import MeshConfig, make_mesh, replicated, shard_batch
from crate_jax.runs import cli, workdir
from crate_jax.runs.config import Config
from crate_jax.runs.console import TrainingProgress, console, table
from crate_jax.runs.metrics import MetricsWriter, ThroughputWindow, read_metrics, write_atomically
from crate_jax.training import evaluation, optim, program, restore, state, steps, throughput
from crate_jax.training.checkpoint import Checkpoints
from crate_jax.training.run import Run, make_run
from crate_jax.training.summary import print_summary

# Steps that the host may run ahead of the device: enough to hide its own work, few enough that forced host devices,
# whose collectives deadlock when many steps are queued, stay alive.
STEPS_IN_FLIGHT = 2


def main(argv: list[str]) -> None:
    config, path, overrides = cli.parse_config_file(argv)
    train(config, path, overrides)


def train(config: Config, path: Path, overrides: Collection[str] = ()) -> dict[str, float] | None:
    """Run a configuration to its end, or until SIGTERM or Ctrl-C.

    Args:
      config: the run.
      path: the workdir; made if it is not there, continued if it is.
      overrides: dotted keys that the user set by hand (see `fit_to_data`).
    Returns:
      the final evaluation, or None when the run was stopped by a signal; its state is then saved.
    Raises:
      InputError: bad input, found before training starts (an unreadable image: when it is read).
      FloatingPointError: the loss or a gradient was not finite.
    """
    run = make_run(config, Path(path), overrides)
    if config.data.benchmark:
        return benchmark(run)
    for change in workdir.check(run.workdir, run.config):
        console.print(f"changed since the last start: {change}")
    with jax.set_mesh(run.mesh):
        trainer = Trainer(run)
        try:
            return trainer.fit()
        finally:
            # On several processes a failure is said at once: the others no longer answer, and a save needs them all.
            if sys.exc_info()[0] is None or not processes.several():
                trainer.close()


def benchmark(run: Run) -> None:
    """Measure the input pipeline alone, the training step alone, and both together; nothing is kept.

    The steps are those of the run, from its first parameters, in a workdir that is removed.

    Raises:
      InputError: several processes. Each would end by its own clock, and the others wait for its part of a step.
    """
    if processes.several():
        raise InputError(f"data.benchmark: found {jax.process_count()} processes; accepted: one")
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(run.mesh):
        trainer = Trainer(dataclasses.replace(run, workdir=Path(folder)))
        try:
            current = state.make_state(run.model, trainer.tx, trainer.key, trainer.abstract)
            measured = throughput.measure(trainer.batches, trainer.train_step, current, run)
        finally:
            trainer.close()
    table(f"input of {run.info.name}, {run.config.batch_size} examples a batch", measured)


class Trainer:
    """One start of a run: compiles, restores or initialises, trains, reports."""

    def __init__(self, run: Run):
        self.run, config = run, run.config
        self.total_steps = run.steps(config.total)
        if self.total_steps < 1:
            raise InputError(
                "config: the run has no length; give total_epochs, total_steps or total_examples"
            )
        names = ("log", "eval", "checkpoint", "trace")
        self.every = {name: run.steps(getattr(config, name)) for name in names}
        self.every["log"] = self.every["log"] or self.total_steps
        if run.model.readings is None:
            self.every["trace"] = 0
        self.schedule = optim.make_schedule(
            config.optimizer.lr, warmup_steps=run.steps(config.warmup), total_steps=self.total_steps
        )
        self.key = jax.random.key(config.seed)
        self.tx = tx = optim.make_optimizer(config.optimizer, self.schedule)
        self.batches = run.train_batches()
        test = run.source("test")
        self.eval_batches = run.eval_batches(test)
        # Held out, and the same at every reading: one batch while training, more at the end.
        self.sample = run.eval_batches(subset.spread(test, config.batch_size))
        self.large_sample = run.eval_batches(subset.spread(test, layerwise.MAX_EXAMPLES))
        one = self.batches.example()
        self.abstract, lowered = program.lower(run, tx, one, log_steps=self.every["log"])
        # Ahead of time: its memory is known before step 1.
        self.train_step = lowered.compile()
        chip = chips.find(run.mesh.devices.flat[0].device_kind)
        self.peak_flops = chip and chip.peak_flops * run.mesh.size
        self.step_flops = program.matmul_flops(run, self.abstract.params, one) if chip else 0
        self.eval_step = steps.make_eval_step(run.model, run.task, run.mesh)
        self.read_layers = layerwise.make_reader(run.model, run.task, run.mesh)
        self.stop_requested = False
        self.in_flight: collections.deque = collections.deque()
        self.checkpoints = Checkpoints(run.workdir)
        self.start_step = self.checkpoints.latest_step or 0
        self.writer: MetricsWriter | None = None

    def close(self) -> None:
        """Finish what is being written."""
        if self.writer is not None:
            self.writer.close()
        self.checkpoints.close()

    def fit(self) -> dict[str, float] | None:
        """Train to the end and report; see `train`."""
        run = self.run
        print_summary(run, self.abstract, self.train_step, self.total_steps, self.start_step)
        if self.start_step:
            current = self.checkpoints.restore(self.abstract, self.start_step)
        else:
            current = state.make_state(run.model, self.tx, self.key, self.abstract)
            if run.config.init_from is not None:
                current = restore.warm_start(current, Path(run.config.init_from), run)
        # Not before: a state that cannot be restored leaves the folder as it was.
        workdir.write(run.workdir, run.config, run.info, run.colours)
        self.writer = MetricsWriter(run.workdir, resume_step=self.start_step, wandb_project=run.config.wandb)
        current = self._loop(current)
        if self.stop_requested and int(current.step) < self.total_steps:
            console.print(
                f"stopped and saved at step {int(current.step)} of {self.total_steps}; "
                f"to resume, start again with --workdir={run.workdir}"
            )
            return None
        return self._finish(current)

    def _loop(self, current: state.TrainState) -> state.TrainState:
        feed = Feed(self.batches.iterate(self.start_step), self.run.mesh)
        self.window = ThroughputWindow(
            self.start_step, feed, step_flops=self.step_flops, peak_flops=self.peak_flops
        )
        progress = TrainingProgress(self.total_steps, self.start_step)
        try:
            with processes.StopSignals() as signals, progress as self.progress:
                for step in range(self.start_step + 1, self.total_steps + 1):
                    batch = next(feed)
                    with jax.transfer_guard("disallow"):
                        current, report = self.train_step(current, batch)
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

    def _settle(self, current: state.TrainState, *, keep: int) -> None:
        """Wait until at most `keep` steps are in flight, and log those that are due. Nothing waits for the newest step."""
        while len(self.in_flight) > keep:
            step, report = self.in_flight.popleft()
            jax.block_until_ready(report)
            self.progress.advance(step)
            if step % self.every["log"] and step != self.total_steps:
                continue
            report = jax.device_get(report)
            if report["halted"]:
                self._raise_nonfinite(current)
            steps_summed = (step - 1) % self.every["log"] + 1
            values = {f"train/{name}": float(total) / steps_summed for name, total in report["sums"].items()}
            values["train/learning_rate"] = float(self.schedule(step - 1))
            values |= self.window.restart(step, self.run.config.batch_size)
            self.writer.write(step, values)
            self.progress.log(step, values)

    def _do_what_is_due(self, current: state.TrainState, step: int) -> None:
        """Readings, evaluation and checkpoint of this step."""
        due = {
            name
            for name in ("trace", "eval", "checkpoint")
            if self.every[name] and step % self.every[name] == 0
        }
        if step == self.total_steps or self.stop_requested:
            due.add("checkpoint")
        if not due:
            return
        self._settle(current, keep=0)
        if bool(current.halted):
            self._raise_nonfinite(current)
        values = {}
        if "trace" in due:
            values |= layerwise.as_metrics(self._read_layers(current.eval_params, self.sample))
        if "eval" in due:
            values |= self._evaluate(current)
            self.progress.log(step, values)
        if values:
            self.writer.write(step, values)
        if "checkpoint" in due:
            score = values.get("eval/accuracy", -values["eval/loss"]) if "eval" in due else None
            self.checkpoints.save(current, step, score)

    def _evaluate(self, current: state.TrainState) -> dict[str, float]:
        means = evaluation.evaluate(self.eval_step, current.eval_params, self.eval_batches, self.run.mesh)
        return {f"eval/{name}": value for name, value in means.items()}

    def _read_layers(self, params, batches: pipeline.Evaluation) -> layerwise.Measurement:
        return layerwise.measure(self.read_layers, params, batches, self.run.mesh)

    def _report_layers(self, params) -> Path:
        """Write `report/layerwise.json` and `.png`: the parameters that training began with against those it ended with."""
        run = self.run
        initial = jax.jit(run.model.init, out_shardings=state.shardings_of(self.abstract.params))(self.key)
        measured = {
            "initial": self._read_layers(initial, self.large_sample),
            "trained": self._read_layers(params, self.large_sample),
        }
        report = run.workdir / "report"
        write_atomically(report / "layerwise.json", json.dumps(measured, indent=1) + "\n")
        title = f"{run.model.config.family} on held-out {run.info.name}"
        figures.layerwise(**measured, path=report / "layerwise.png", title=title)
        return report / "layerwise.png"

    def _report_task(self, params, values: dict[str, float]) -> dict[str, str]:
        """The task's own reports: of several processes the first makes them, on one device of its own."""
        run, mesh, rows = self.run, self.run.mesh, {}
        if processes.several():
            mesh = make_mesh(MeshConfig(), jax.local_devices()[:1])
            if run.task.show is not None:
                params = jax.jit(lambda params: params, out_shardings=replicated(run.mesh))(params)
                params = jax.tree.map(lambda leaf: leaf.addressable_data(0), params)
        if not processes.is_first():
            return rows
        with jax.set_mesh(mesh):
            if run.task.report is not None:
                rows |= run.task.report(values, run.source("test"), run.workdir / "report")
            if run.task.show is not None:
                rows |= run.task.show(
                    partial(run.model.apply, params), run.source("test"), run.workdir / "report"
                )
        return rows

    def _raise_nonfinite(self, current: state.TrainState) -> None:
        """The state stopped moving at the bad step, and the batch is a function of the step: look at it again."""
        step = int(current.step)
        batch = shard_batch(self.batches.batch(step), self.run.mesh)
        key = jax.random.fold_in(jax.random.key(self.run.config.seed), step)
        where = steps.find_nonfinite(
            self.run.model,
            self.run.task,
            current.params,
            current.ema,
            batch,
            key,
            self.run.mesh,
            accumulate=self.run.config.accumulate,
        )
        self.checkpoints.wait()
        good = self.checkpoints.latest_step
        kept = "no checkpoint was saved yet" if good is None else f"the last good checkpoint is step {good}"
        raise FloatingPointError(
            f"step {step + 1}: non-finite value, first in {where}; {kept}. A lower optimizer.lr, a longer warmup or "
            f"optimizer.clip_norm often cures it"
        )

    def _finish(self, current: state.TrainState) -> dict[str, float]:
        """Evaluate the last parameters, draw the layers, write the final line."""
        values = self._evaluate(current)
        rows = {name.removeprefix("eval/"): f"{value:.4f}" for name, value in values.items()}
        rows["count"] = f"{values['eval/count']:.0f} examples"
        if self.run.model.readings is not None:
            rows["layers"] = self._report_layers(current.eval_params)
        self.writer.write(int(current.step), {**values, "final": True})
        title = f"{self.run.model.config.family} on {self.run.info.name}"
        figures.losses(read_metrics(self.writer.path), self.run.workdir / "report" / "loss.png", title=title)
        rows |= self._report_task(current.eval_params, values)
        table("test set, last parameters", {**rows, "metrics": self.writer.path})
        return values


if __name__ == "__main__":
    cli.run(main)
