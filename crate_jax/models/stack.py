"""A stack of equal blocks: one scan over stacked parameters, rematerialisation, traces.

The parameters of all layers are stored stacked along a first axis of length `depth` whether the stack is scanned or
unrolled, so a checkpoint does not depend on that choice.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from crate_jax import InputError

# What a block reports of itself: named arrays. `trace` is False (nothing), True (all of them) or a function that
# reduces them inside the scan, so that a reading of every layer needs no memory for the activations of every layer.
Trace = bool | Callable[[dict[str, jax.Array]], Any]

REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def constrain_tokens(x: jax.Array) -> jax.Array:
    """Keep the residual stream sharded over the batch: left to itself XLA may replicate it over fsdp.

    Without a mesh in context (a model used on its own) there is nothing to do.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "data" not in mesh.axis_names:
        return x
    spec = PartitionSpec(("data", "fsdp"), *(None,) * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, spec)


class Stack(nnx.Module):
    """`depth` blocks made by `make_block(rngs)`; called as `block(x, report=…)`, each returns `(x, named arrays)`."""

    def __init__(
        self,
        make_block: Callable[[nnx.Rngs], nnx.Module],
        depth: int,
        *,
        scan: bool,
        remat: str,
        rngs: nnx.Rngs,
    ):
        if remat not in REMAT_POLICIES:
            raise InputError(f"model.remat: found {remat!r}; accepted: {', '.join(REMAT_POLICIES)}")
        self.depth, self.scan, self.remat = depth, scan, remat
        keys = jax.random.split(rngs.params(), depth)
        self.blocks = nnx.vmap(lambda key: make_block(nnx.Rngs(params=key)), in_axes=0)(keys)

    def __call__(self, x: jax.Array, *, trace: Trace = False) -> tuple[jax.Array, Any]:
        """`x` through all blocks. The trace has a leading axis of length `depth`; None when `trace` is False."""
        graphdef, stacked = nnx.split(self.blocks)
        reduce = (lambda report: report) if trace is True else trace

        def body(x, params):
            # At the entry of the block: constrained at its exit, the gradients of a scan came out wrong on a
            # data=2 × fsdp=2 × tensor=2 mesh (XLA of jax 0.10.2; the losses were right).
            x, report = nnx.merge(graphdef, params)(constrain_tokens(x), report=bool(trace))
            return x, (reduce(report) if trace else None)

        if self.remat != "none":
            # A scan body is never merged with its recomputation by CSE, so the barriers that prevent it cost for nothing.
            body = jax.checkpoint(body, policy=REMAT_POLICIES[self.remat], prevent_cse=not self.scan)
        if self.scan:
            x, reports = jax.lax.scan(body, x, stacked)
            return constrain_tokens(x), reports
        reports = []
        for layer in range(self.depth):
            x, report = body(x, jax.tree.map(lambda leaf: leaf[layer], stacked))  # noqa: B023
            reports.append(report)
        return constrain_tokens(x), jax.tree.map(lambda *leaves: jnp.stack(leaves), *reports)
