"""Run by test_sharding.py on 8 forced devices: how far every family's outputs and gradients are from one device's.

Prints one line for each family and mesh: the family, the mesh, the relative distance of the outputs and of the gradients.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import models
from crate_jax.models import xla
from crate_jax.parallel import sharding
from crate_jax.parallel.sharding import MeshConfig

SMALL = {"dim": 16, "depth": 2, "heads": 2, "head_dim": 8, "dtype": "float32"}
IMAGES = {"image_size": 8, "patch_size": 4, "channels": 1, "num_classes": 6}
TOKENS = {"vocab_size": 8, "num_positions": 12}
MESHES = ((2, 2, 2),)
# Families as they are by default, and with the switches that change which tokens the last layer computes.
CHANGES = {
    **{name: (name, {}) for name in models.FAMILIES},
    "crate, mean": ("crate", {"pool": "mean"}),
    "crate, scanned": ("crate", {"scan": True}),
}
DECODED = ("crate_gpt", "igpt")
# Small as they are, batches are taken in pieces.
xla.LARGE = 0


def make(family: str, changes: dict) -> models.Model:
    config = models.FAMILIES[family].config
    fields = {field.name for field in dataclasses.fields(config)}
    wanted = {**SMALL, **IMAGES, **TOKENS, **changes}
    if family == "igpt":
        del wanted["num_classes"]  # An image's classes: the model predicts tokens here.
    return models.create(config(**{key: value for key, value in wanted.items() if key in fields}))


def inputs_of(model: models.Model, key: jax.Array) -> jax.Array:
    if hasattr(model.config, "vocab_size"):
        return jax.random.randint(key, (16, TOKENS["num_positions"]), 0, TOKENS["vocab_size"])
    return jax.random.normal(key, (16, 8, 8, 1))


def decoded(model: models.Model, params, tokens: jax.Array) -> jax.Array:
    """The logits of every position, one after the other."""
    decode, cache, logits = model.decoder(params), model.init_cache(len(tokens)), []
    for position in range(tokens.shape[1]):
        here, cache = decode(tokens[:, max(position - 1, 0)], cache, position)
        logits.append(here)
    return jnp.stack(logits)


def observe(model: models.Model, inputs: jax.Array, mesh, *, step: bool) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and gradients of their sum of squares, each as one vector; `step`: outputs a token at a time."""

    def loss(params, inputs):
        if step:
            outputs = decoded(model, params, inputs)
        else:
            outputs, _ = model.apply(params, inputs, train=True, key=jax.random.key(2))
        return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(outputs)), outputs

    with jax.set_mesh(mesh):
        leaves, tree = jax.tree.flatten(model.init(jax.random.key(1)))
        # No parameter is left at zero, as heads start: nothing would reach the output.
        keys = jax.random.split(jax.random.key(3), len(leaves))
        params = tree.unflatten(
            [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
        )
        params = jax.device_put(params, sharding.tree_shardings(params, mesh))
        batch = jax.device_put(inputs, sharding.batch_sharding(mesh))
        gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(params, batch)
    return tuple(
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (outputs, gradients)
    )


def main() -> None:
    cases = {name: (*case, False) for name, case in CHANGES.items()}
    cases |= {f"{name}, decoded": (name, {}, True) for name in DECODED}
    for name, (family, changes, step) in cases.items():
        model = make(family, changes)
        inputs = inputs_of(model, jax.random.key(0))
        one = observe(model, inputs, sharding.make_mesh(MeshConfig(), jax.devices()[:1]), step=step)
        for shape in MESHES:
            seen = observe(model, inputs, sharding.make_mesh(MeshConfig("dp", *shape)), step=step)
            far = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(seen, one, strict=True)]
            print(name, "×".join(map(str, shape)), *far, sep="\t")


if __name__ == "__main__":
    main()
