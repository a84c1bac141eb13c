"""Run by test_processes.py, in one process or in several: what a small run computes on given meshes.

    python observe_meshes.py OUT.npz WORKDIR MESH ... [--coordinator=… --num_processes=… --process_id=…]

A mesh is DATAxFSDPxTENSOR, on the first so many devices. Of each are written, under its name: the examples of 10 steps, the
gradients at the initial parameters, the losses of 10 SGD steps. The first mesh on which WORKDIR holds no checkpoint saves
one; all others restore it, and write its parameters as restored, the gradients there and the examples of the next steps.
"""

import dataclasses
import math
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import TINY, load_config

from crate_jax.parallel import processes, sharding
from crate_jax.parallel.sharding import MeshConfig
from crate_jax.runs.flags import take
from crate_jax.training import optim, state, steps
from crate_jax.training.building import Run
from crate_jax.training.checkpoint import Checkpoints
from crate_jax.training.starting import start_run

STEPS = 10
CHANGES = {"optimizer.name": "sgd", "optimizer.lr": 0.05, "optimizer.weight_decay": 0.0}


def observe(run: Run, folder: Path) -> dict[str, np.ndarray]:
    model, task, config, mesh = run.model, run.task, run.config, run.mesh
    everywhere = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))
    batches = run.data.train_batches()

    def batch(number):
        return sharding.shard_batch(batches.batch(number), mesh)

    def examples(numbers):
        return np.stack([np.asarray(everywhere(batch(number)["index"])) for number in numbers])

    def flat(tree):
        return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(everywhere(tree))])

    tx = optim.make_optimizer(config.optimizer, lambda step: config.optimizer.lr)
    names = steps.metric_names(model, task, batches.batch(0))
    abstract = state.abstract_state(model, tx, mesh, ema=False, metric_names=names)
    gradients = jax.jit(
        lambda params, batch: steps.loss_and_grad(model, task, params, batch, jax.random.key(1))[1],
        out_shardings=sharding.tree_shardings(abstract.params, mesh),
    )
    step = jax.jit(
        steps.make_train_step(model, task, tx, config, log_steps=1, total_steps=10**6),
        donate_argnums=0,
        out_shardings=(state.shardings_of(abstract), sharding.replicated(mesh)),
    )
    current = state.make_state(model, tx, jax.random.key(0), abstract)
    seen = {"gradients": flat(gradients(current.params, batch(0))), "examples": examples(range(STEPS))}
    losses = []
    for number in range(STEPS):
        current, report = step(current, batch(number))
        losses.append(float(report["sums"]["loss"]))
    seen["losses"] = np.array(losses)
    seen["split"] = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(current.params))
    checkpoints = Checkpoints(folder)
    if checkpoints.latest() is None:
        checkpoints.start_saving()
        checkpoints.save(current, STEPS, None)
        checkpoints.wait()
    else:
        current = checkpoints.restore(abstract, STEPS)
    checkpoints.close()
    seen["saved"] = flat(current)
    seen["gradients_after"] = flat(gradients(current.params, batch(STEPS)))
    seen["examples_after"] = examples(range(STEPS, STEPS + 5))
    return seen


def main(out: str, folder: str, *meshes: str) -> None:
    run = start_run(load_config({**TINY, **CHANGES}), Path("unused"))
    arrays = {}
    for name in meshes:
        sizes = [int(size) for size in name.split("x")]
        mesh = sharding.make_mesh(MeshConfig("dp", *sizes), jax.devices()[: math.prod(sizes)])
        with jax.set_mesh(mesh):
            seen = observe(dataclasses.replace(run, mesh=mesh), Path(folder))
        arrays |= {f"{name}/{what}": array for what, array in seen.items()}
    if processes.is_first():
        np.savez(out, **arrays)


if __name__ == "__main__":
    flags, arguments = take(sys.argv, processes.JobFlags)
    processes.join(flags)
    main(*arguments)
    processes.leave()
