"""Run by test_one_and_eight.py on 8 forced devices: the same small training on one device and on all.

Prints one line of JSON: for each seed the accuracy on the test set at the end on either mesh, and how far the gradients of
the two are from each other at equal parameters, at the start and at the end.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import load_config

from crate_jax.parallel import sharding
from crate_jax.parallel.sharding import MeshConfig
from crate_jax.training import state, steps
from crate_jax.training.evaluation import evaluate
from crate_jax.training.program import compile_program
from crate_jax.training.starting import start_run

SEEDS = (0, 1, 2)
CHANGES = {
    "model.dim": 32,
    "model.depth": 2,
    "model.heads": 2,
    "model.head_dim": 16,
    "total_steps": 200,
    "optimizer.name": "adamw",  # Rounding leads Lion, which takes signs, astray within a hundred steps.
    "optimizer.lr": 4e-3,
}


class Training:
    """The functions of a run on one mesh, compiled once for all seeds."""

    def __init__(self, run):
        self.mesh, self.model = run.mesh, run.model
        self.program = compile_program(run, run.data.train_batches().batch(0))
        self.eval_step = steps.make_eval_step(run.model, run.task, run.mesh)
        self.gradients = jax.jit(
            lambda params, batch: steps.loss_and_grad(run.model, run.task, params, batch, jax.random.key(1))[
                1
            ],
            out_shardings=state.shardings_of(self.program.abstract.params),
        )

    def accuracy(self, run):
        """The test accuracy at the end, and the parameters."""
        batches, current = run.data.train_batches(), self.program.initial_state(run)
        for number in range(self.program.total_steps):
            batch = sharding.shard_batch(batches.batch(number), self.mesh)
            current, report = self.program.train_step(current, batch)
            if number % 10 == 0:
                jax.block_until_ready(report)  # Forced devices deadlock where many steps wait.
        test = run.data.eval_batches(run.data.source("test"))
        return evaluate(self.eval_step, current.params, test, self.mesh)["accuracy"], current.params

    def at(self, params, batch) -> np.ndarray:
        """The gradients of a batch at parameters from anywhere, as one vector."""
        params = jax.device_put(jax.device_get(params), state.shardings_of(self.program.abstract.params))
        found = jax.device_get(self.gradients(params, sharding.shard_batch(batch, self.mesh)))
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)])


def main() -> None:
    base = start_run(load_config(CHANGES), Path("unused"))
    runs = [
        dataclasses.replace(base, mesh=sharding.make_mesh(MeshConfig(), jax.devices()[:count]))
        for count in (1, 8)
    ]
    trainings = []
    for run in runs:
        with jax.set_mesh(run.mesh):
            trainings.append(Training(run))
    accuracies, distances = [], []
    for seed in SEEDS:
        seeded = [dataclasses.replace(run, config=dataclasses.replace(run.config, seed=seed)) for run in runs]
        ends = []
        for run, training in zip(seeded, trainings, strict=True):
            with jax.set_mesh(run.mesh):
                ends.append(training.accuracy(run))
        accuracies.append([accuracy for accuracy, _ in ends])
        for params in (base.model.init(jax.random.key(seed)), ends[0][1]):
            found = []
            for run, training in zip(seeded, trainings, strict=True):
                with jax.set_mesh(run.mesh):
                    found.append(training.at(params, run.data.train_batches().batch(0)))
            distances.append(float(np.linalg.norm(found[1] - found[0]) / np.linalg.norm(found[0])))
    print(json.dumps({"accuracies": accuracies, "distances": distances}))


if __name__ == "__main__":
    main()
