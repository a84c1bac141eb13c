"""Train a model; started again with the same workdir it goes on where it stopped."""

import collections
import json
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

import jax

from crate_jax import InputError
from crate_jax.analysis import figures, layerwise
from crate_jax.training import cli, console, evaluation, optim, state, steps, workdir
from crate_jax.training.checkpoint import Checkpoints
from crate_jax.training.config import Config
from crate_jax.training.metrics import MetricsWriter, write_atomically
from crate_jax.training.run import Run, make_run
from crate_jax.training.sharding import batch_sharding, bytes_per_device, replicated, shard_batch

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
    for change in workdir.prepare(run.workdir, run.config, run.info):
        console.console.print(f"changed since the last start: {change}")
    with jax.set_mesh(run.mesh):
        trainer = Trainer(run)
        try:
            return trainer.fit()
        finally:
            trainer.close()


class Trainer:
    """One start of a run: compiles, restores or initialises, trains, reports."""

    def __init__(self, run: Run):
        self.run, config = run, run.config
        self.total_steps = run.steps(config.total)
        if self.total_steps < 1:
            raise InputError("config: the run has no length; give total_epochs, total_steps or total_examples")
        self.every = {
            name: run.steps(getattr(config, name)) for name in ("log", "eval", "checkpoint", "trace")
        }
        self.schedule = optim.make_schedule(
            config.optimizer.lr, warmup_steps=run.steps(config.warmup), total_steps=self.total_steps
        )
        self.tx = optim.make_optimizer(config.optimizer, self.schedule)
        self.batches = run.train_batches()
        self.eval_batches = run.eval_batches(run.source("test"))
        first = self.batches.batch(0)
        names = steps.metric_names(run.model, run.task, shard_batch(first, run.mesh))
        self.abstract = state.abstract_state(
            run.model, self.tx, run.mesh, ema=config.ema_decay > 0, metric_names=names
        )
        self.train_step = self._compile(first)
        self.eval_step = steps.make_eval_step(run.model, run.task)
        self.read_layers = layerwise.make_reader(run.model, run.task, run.mesh)
        self.stop_requested = False
        self.checkpoints = Checkpoints(run.workdir)
        self.start_step = self.checkpoints.latest_step or 0
        self.writer = MetricsWriter(run.workdir, resume_step=self.start_step, wandb_project=config.wandb)

    def close(self) -> None:
        self.writer.close()
        self.checkpoints.close()

    def _compile(self, first_batch):
        """The training step, compiled ahead: its memory is known before step 1."""
        run = self.run
        step = steps.make_train_step(
            run.model, run.task, self.tx, run.config, log_steps=self.every["log"] or self.total_steps
        )
        shardings = state.shardings_of(self.abstract)
        step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(run.mesh)))
        batch = {
            name: jax.ShapeDtypeStruct(
                (run.config.batch_size, *value.shape[1:]), value.dtype, sharding=batch_sharding(run.mesh)
            )
            for name, value in first_batch.items()
        }
        return step.lower(self.abstract, batch).compile()

    def fit(self) -> dict[str, float] | None:
        """Train to the end and report; see `train`."""
        run = self.run
        if self.start_step:
            current = self.checkpoints.restore(self.abstract, self.start_step)
        else:
            current = state.make_state(run.model, self.tx, jax.random.key(run.config.seed), self.abstract)
        self._summary(current)
        initial = run.workdir / "report" / "layerwise_initial.json"
        if not self.start_step:
            measured = layerwise.measure(self.read_layers, current.params, self.eval_batches, run.mesh)
            write_atomically(initial, json.dumps(measured))
        current = self._loop(current)
        if self.stop_requested:
            step = int(current.step)
            console.console.print(
                f"stopped and saved at step {step} of {self.total_steps}; start again with --workdir={run.workdir} to resume"
            )
            return None
        return self._finish(current, json.loads(initial.read_text(encoding="utf-8")))

    def _loop(self, current: state.TrainState) -> state.TrainState:
        run = self.run
        in_flight: collections.deque = collections.deque()
        waited, window_start, window_step = 0.0, time.perf_counter(), self.start_step

        def settle(keep: int) -> None:
            """Wait until at most `keep` steps are in flight; log those that are due."""
            nonlocal waited, window_start, window_step
            while len(in_flight) > keep:
                step, report = in_flight.popleft()
                jax.block_until_ready(report)
                progress.advance(step)
                if self._due("log", step):
                    report = jax.device_get(report)
                    if report["halted"]:
                        self._raise_nonfinite(current)
                    now = time.perf_counter()
                    values = {f"train/{k}": float(v) / (step - (step - 1) // self.every["log"] * self.every["log"]) for k, v in report["sums"].items()}
                    values |= {
                        "train/learning_rate": float(self.schedule(step - 1)),
                        "train/examples_per_second": (step - window_step) * run.config.batch_size / (now - window_start),
                        "train/data_wait_fraction": waited / (now - window_start),
                        "seconds": now - began,
                    }
                    waited, window_start, window_step = 0.0, now, step
                    self.writer.write(step, values)
                    progress.log(step, values)

        began = time.perf_counter()
        handlers = {number: signal.signal(number, self._request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
        stream = self.batches.iterate(self.start_step)
        try:
            with console.TrainingProgress(self.total_steps, self.start_step) as progress:
                for step in range(self.start_step + 1, self.total_steps + 1):
                    asked = time.perf_counter()
                    batch = next(stream)
                    waited += time.perf_counter() - asked
                    with jax.transfer_guard("disallow"):
                        current, report = self.train_step(current, shard_batch(batch, run.mesh))
                    in_flight.append((step, report))
                    settle(keep=STEPS_IN_FLIGHT)
                    last = step == self.total_steps
                    due = {name: self._due(name, step) or (last and name == "checkpoint") for name in self.every}
                    if due["trace"] or due["eval"] or due["checkpoint"] or self.stop_requested:
                        settle(keep=0)
                        if bool(current.halted):
                            self._raise_nonfinite(current)
                        values = self._measure(current, step, trace=due["trace"], evaluate=due["eval"])
                        if values:
                            progress.log(step, values)
                        if due["checkpoint"] or self.stop_requested:
                            self.checkpoints.save(current, step, values.get("eval/accuracy", None))
                    if self.stop_requested:
                        break
                settle(keep=0)
        finally:
            stream.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        self.checkpoints.wait()
        return current

    def _due(self, name: str, step: int) -> bool:
        every = self.every[name]
        return bool(every) and (step % every == 0 or (name == "log" and step == self.total_steps))

    def _request_stop(self, number, frame) -> None:
        del number, frame
        self.stop_requested = True
        # A second signal ends the process at once.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _measure(self, current: state.TrainState, step: int, *, trace: bool, evaluate: bool) -> dict[str, float]:
        """Readings of the layers (on the first evaluation batch) and the whole evaluation, as they are due."""
        values = {}
        if trace:
            measured = layerwise.measure(
                self.read_layers, current.eval_params, self.eval_batches, self.run.mesh, limit=1
            )
            values |= layerwise.as_metrics(measured)
        if evaluate:
            values |= self._evaluate(current)
        if values:
            self.writer.write(step, values)
        return values

    def _evaluate(self, current: state.TrainState) -> dict[str, float]:
        means = evaluation.evaluate(self.eval_step, current.eval_params, self.eval_batches, self.run.mesh)
        return {f"eval/{name}": value for name, value in means.items()}

    def _raise_nonfinite(self, current: state.TrainState) -> None:
        """The state stopped moving at the bad step, and the batch is a function of the step: look at it again."""
        step = int(current.step)
        batch = shard_batch(self.batches.batch(step), self.run.mesh)
        key = jax.random.fold_in(jax.random.key(self.run.config.seed), step)
        where = steps.find_nonfinite(self.run.model, self.run.task, current.params, batch, key)
        self.checkpoints.wait()
        good = self.checkpoints.latest_step
        kept = "no checkpoint was saved yet" if good is None else f"the last good checkpoint is step {good}"
        raise FloatingPointError(
            f"step {step + 1}: non-finite value, first in {where}; {kept}. A lower optimizer.lr, a longer warmup or "
            f"optimizer.clip_norm often cures it"
        )

    def _summary(self, current: state.TrainState) -> None:
        run, config = self.run, self.run.config
        shardings = state.shardings_of(self.abstract)
        memory = self.train_step.memory_analysis()
        peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
        peak -= memory.alias_size_in_bytes
        mesh = " × ".join(f"{name}={size}" for name, size in run.mesh.shape.items())
        model = run.model.config
        console.table(
            f"{model.family} on {run.info.name}",
            {
                "model": f"depth {model.depth}, dim {model.dim}, {model.heads} heads of {model.head_dim}",
                "parameters": f"{run.model.num_params:,}",
                "input": f"{model.image_size}×{model.image_size}×{model.channels}, "
                f"{model.num_tokens} patches of {model.patch_size} px, {model.num_classes} classes",
                "examples": ", ".join(f"{n:,} {split}" for split, n in run.info.num_examples.items()),
                "mesh": f"{mesh} on {run.mesh.size} {jax.devices()[0].platform} device(s)",
                "memory a device": f"{console.human_bytes(peak)} at the peak, of which parameters "
                f"{console.human_bytes(bytes_per_device(self.abstract.params, shardings.params))} and optimiser "
                f"{console.human_bytes(bytes_per_device(self.abstract.opt_state, shardings.opt_state))}",
                "batch": f"{config.batch_size}" + (f" in {config.accumulate} slices" if config.accumulate > 1 else ""),
                "steps": f"{self.total_steps:,}" + (f", resuming at {self.start_step:,}" if self.start_step else ""),
                "optimiser": f"{config.optimizer.name}, lr {config.optimizer.lr:g}, decay {config.optimizer.weight_decay:g}",
                "workdir": run.workdir,
            },
        )

    def _finish(self, current: state.TrainState, initial: layerwise.Measurement) -> dict[str, float]:
        """Evaluate the last parameters, draw the layers, write the final line."""
        run = self.run
        trained = layerwise.measure(self.read_layers, current.eval_params, self.eval_batches, run.mesh)
        report = run.workdir / "report"
        write_atomically(report / "layerwise.json", json.dumps({"initial": initial, "trained": trained}, indent=1))
        figures.layerwise(
            initial, trained, report / "layerwise.png", title=f"CRATE on held-out {run.info.name}, layer by layer"
        )
        values = self._evaluate(current)
        self.writer.write(int(current.step), {**values, "final": True})
        console.table(
            "test set, last parameters",
            {
                "accuracy": f"{values['eval/accuracy']:.4f}",
                "loss (nats)": f"{values['eval/loss']:.4f}",
                "examples": f"{values['eval/count']:.0f}",
                "layers": report / "layerwise.png",
                "metrics": run.workdir / "metrics.jsonl",
            },
        )
        return values


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.run(main)
