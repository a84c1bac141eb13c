"""Where arrays lie on a mesh: one table for the parameters, the optimiser's moments, activations, caches and batches.

Axes: `data` replicates parameters and splits the batch; `fsdp` splits both; `tensor` splits heads and features.
"""

import re

import jax
from jax.sharding import PartitionSpec

# The batch is split over both of these.
BATCH_AXES = ("data", "fsdp")

# An axis of the mesh, several, or None for a dimension that is not split.
Axis = str | tuple[str, ...] | None

# Path pattern → partition of the trailing dimensions (a stack adds a leading, unsplit one). The first match wins; the
# paths of optimiser moments end in those of their parameters, so one row serves both.
RULES: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    # Adafactor's row and column means have a dimension less than their parameter and are small: not split.
    (r"/v_(row|col)/", ()),
    (r"(mssa|tssa)/bases$", ("tensor", "fsdp", None)),
    (r"(mssa|tssa)/(fixed_)?output$", ("tensor", None, "fsdp")),
    (r"(dictionary|decoder)$", ("fsdp", "tensor")),
    (r"(projection|head)/kernel$", ("fsdp", "tensor")),
    (r"qkv/kernel$", ("fsdp", None, "tensor", None)),
    (r"attention_output/kernel$", ("tensor", None, "fsdp")),
    (r"mlp_in/kernel$", ("fsdp", "tensor")),
    (r"mlp_out/kernel$", ("tensor", "fsdp")),
    (r"(position|token)_embedding$", (None, "fsdp")),
    # What is no parameter: the residual stream [b, n, d] or [b, d], a layer's cache [b, heads, n, p], a batch.
    (r"^activation/tokens$", (BATCH_AXES, None, None)),
    (r"^activation/token$", (BATCH_AXES, None)),
    (r"^cache/", (BATCH_AXES, "tensor", None, None)),
    (r"^batch/", (BATCH_AXES,)),
)


def axes_for(path: str, ndim: int) -> tuple[Axis, ...] | None:
    """One entry for each dimension by the first rule that matches the path; None if none does.

    Rules name the trailing dimensions of parameters; a batch's is the leading one.
    """
    for pattern, axes in RULES:
        if re.search(pattern, path) and ndim >= len(axes):
            rest = (None,) * (ndim - len(axes))
            return (*axes, *rest) if pattern == r"^batch/" else (*rest, *axes)
    return None


def constrain(x: jax.Array, path: str) -> jax.Array:
    """Keep an array placed as the rules say: left to itself XLA may replicate the batch over fsdp.

    Without a mesh in context (a model used on its own) there is nothing to do.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "data" not in mesh.axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes_for(path, x.ndim)))
