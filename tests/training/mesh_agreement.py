"""Run by test_sharding.py in a process of its own with 8 forced devices: one device against several meshes.

Prints one JSON object: for each mesh the examples of 10 steps, the relative difference of gradients at equal parameters,
and the losses of 10 SGD steps.
"""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import TINY, load_config

from crate_jax.training import optim, sharding, state, steps
from crate_jax.training.config import MeshConfig
from crate_jax.training.run import make_run

STEPS = 10


def observe(run, mesh) -> dict:
    run = dataclasses.replace(run, mesh=mesh)
    model, task, config = run.model, run.task, run.config
    tx = optim.make_optimizer(config.optimizer, lambda step: config.optimizer.lr)
    batches = run.train_batches()
    names = steps.metric_names(model, task, batches.batch(0))
    abstract = state.abstract_state(model, tx, mesh, ema=False, metric_names=names)
    with jax.set_mesh(mesh):
        current = state.make_state(model, tx, jax.random.key(0), abstract)
        grads = jax.jit(
            partial(steps.loss_and_grad, model, task),
            out_shardings=(None, sharding.tree_shardings(current.params, mesh)),
        )(current.params, sharding.shard_batch(batches.batch(0), mesh), jax.random.key(1))[1]
        step = jax.jit(
            steps.make_train_step(model, task, tx, config, log_steps=1),
            donate_argnums=0,
            out_shardings=(state.shardings_of(abstract), sharding.replicated(mesh)),
        )
        losses, examples = [], []
        for number in range(STEPS):
            batch = batches.batch(number)
            examples.append(batch["index"].tolist())
            current, report = step(current, sharding.shard_batch(batch, mesh))
            losses.append(float(report["sums"]["loss"]))
    split = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(current.params))
    return {
        "grads": [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(grads))],
        "losses": losses,
        "examples": examples,
        "sharded_params": split,
    }


def main() -> None:
    changes = {"optimizer.name": "sgd", "optimizer.lr": 0.05, "optimizer.weight_decay": 0.0}
    run = make_run(load_config({**TINY, **changes}), Path("unused"))
    one = observe(run, sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
    report = {}
    for sizes in ((8, 1, 1), (4, 2, 1), (2, 2, 2)):
        other = observe(run, sharding.make_mesh(MeshConfig("dp", *sizes)))
        report["×".join(map(str, sizes))] = {
            "same_examples": other["examples"] == one["examples"],
            "gradient_error": max(
                float(np.linalg.norm(a - b) / np.linalg.norm(b))
                for a, b in zip(other["grads"], one["grads"], strict=True)
            ),
            "loss_error": max(
                abs(a - b) / abs(b) for a, b in zip(other["losses"], one["losses"], strict=True)
            ),
            "sharded_params": other["sharded_params"],
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
