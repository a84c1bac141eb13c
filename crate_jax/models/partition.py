"""What is said of arrays by their path, in one table: where they lie on a mesh, and which parameters weight decay shrinks.

Axes: `data` replicates parameters and splits the batch; `fsdp` splits both; `tensor` splits heads and features.
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from crate_jax import InputError

# The batch is split over both of these.
BATCH_AXES = ("data", "fsdp")
# An array above this that no rule matches is an error: small ones may be kept whole on every device.
MAX_REPLICATED_BYTES = 2**20

# An axis of the mesh, several, or None for a dimension that is not split.
Axis = str | tuple[str, ...] | None


class Rule(NamedTuple):
    """One row: a path pattern, the partition of the trailing dimensions (a stack adds a leading, unsplit one; None: small,
    kept whole), and of parameters whether weight decay applies (None: no parameter).
    """

    pattern: str
    axes: tuple[Axis, ...] | None
    decayed: bool | None = None


# The first match wins; the paths of optimiser moments end in those of their parameters, so one row serves both. Not decayed
# are norms, biases, positions, the tokens that stand for no patch, temperatures and learned step sizes, because pulling
# them to zero compresses nothing, and a fixed output matrix, which is not trained at all.
RULES: tuple[Rule, ...] = (
    # Adafactor's row and column means have a dimension less than their parameter and are small: not split.
    Rule(r"/v_(row|col)/", ()),
    Rule(r"(mssa|tssa)/bases$", ("tensor", "fsdp", None), decayed=True),
    Rule(r"(mssa|tssa)/output$", ("tensor", None, "fsdp"), decayed=True),
    Rule(r"mssa/fixed_output$", ("tensor", None, "fsdp"), decayed=False),
    Rule(r"(dictionary|decoder)$", ("fsdp", "tensor"), decayed=True),
    Rule(r"(projection|head)/kernel$", ("fsdp", "tensor"), decayed=True),
    Rule(r"qkv/kernel$", ("fsdp", None, "tensor", None), decayed=True),
    Rule(r"attention_output/kernel$", ("tensor", None, "fsdp"), decayed=True),
    Rule(r"mlp_in/kernel$", ("fsdp", "tensor"), decayed=True),
    Rule(r"mlp_out/kernel$", ("tensor", "fsdp"), decayed=True),
    Rule(r"token_embedding$", (None, "fsdp"), decayed=True),
    Rule(r"position_embedding$", (None, "fsdp"), decayed=False),
    Rule(r"(^|/)kernel$", None, decayed=True),
    Rule(r"(scale|bias|class_token|mask_token)$", None, decayed=False),
    Rule(r"(temperature|compression_step|step_size|penalty)$", None, decayed=False),
    # What is no parameter: the residual stream [b, n, d] or [b, d], a layer's cache [b, heads, n, p], a batch.
    Rule(r"^activation/tokens$", (BATCH_AXES, None, None)),
    Rule(r"^activation/token$", (BATCH_AXES, None)),
    Rule(r"^cache/", (BATCH_AXES, "tensor", None, None)),
    Rule(r"^batch/", (BATCH_AXES,)),
)


def axes_for(path: str, ndim: int) -> tuple[Axis, ...] | None:
    """One entry for each dimension by the first rule that places the path; None if none does.

    Rules name the trailing dimensions of parameters; a batch's is the leading one.
    """
    axes = _rule_axes(path, ndim)
    if axes is None:
        return None
    rest = (None,) * (ndim - len(axes))
    return (*axes, *rest) if path.startswith("batch/") else (*rest, *axes)


def _rule_axes(path: str, ndim: int) -> tuple[Axis, ...] | None:
    """The axes of the first rule that places the path, without those that a stack adds."""
    for pattern, axes, _ in RULES:
        if axes is not None and re.search(pattern, path) and ndim >= len(axes):
            return axes
    return None


def is_decayed(path: str, nbytes: int) -> bool:
    """Whether weight decay applies to the parameter at this path, of so many bytes. A small one that no rule names is left
    alone.

    Raises:
      InputError: a large parameter that no rule names: a family was added and its row forgotten.
    """
    for pattern, _, decayed in RULES:
        if decayed is not None and re.search(pattern, path):
            return decayed
    if nbytes > MAX_REPLICATED_BYTES:
        raise InputError(
            f"weight decay: no rule matches parameter {path}, {nbytes} bytes; add one to models.partition.RULES"
        )
    return False


def constrain(x: jax.Array, path: str) -> jax.Array:
    """Keep an array placed as the rules say: left to itself XLA may replicate the batch over fsdp.

    Without a mesh in context (a model used on its own) there is nothing to do.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = axes_for(path, x.ndim)
    if mesh.empty or "data" not in mesh.axis_names or axes is None:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def gather(params: Any, *, stacks: bool = False) -> Any:
    """Parameters as a product takes them: whole along fsdp, still split over tensor. Their gradients come back split.

    Those of a stack are left alone unless `stacks`: a layer gathers its own when it runs, so that one layer at a time is
    whole. Said outright because XLA, left to choose, may split a product otherwise.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("fsdp", 1) == 1:
        return params

    def one(path, leaf):
        axes = _rule_axes(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.ndim)
        if axes is None or "fsdp" not in axes or (leaf.ndim > len(axes) and not stacks):
            return leaf
        axes = (None,) * (leaf.ndim - len(axes)) + axes
        fits = [axis and leaf.shape[i] % mesh.shape[axis] == 0 for i, axis in enumerate(axes)]
        split = [axis if fit else None for axis, fit in zip(axes, fits, strict=True)]
        whole = [None if axis == "fsdp" else axis for axis in split]
        return _gathered(leaf, PartitionSpec(*whole), PartitionSpec(*split))

    return jax.tree_util.tree_map_with_path(one, params)


def on_mesh(
    call: Callable,
    placed_in: Sequence[str],
    placed_out: Any,
    operands: Sequence[jax.Array],
    real: jax.Array | None,
) -> Any:
    """`call(*operands)` on what each device has of the batch and of the heads: XLA does not know how to split a custom call,
    and gathers all of its operands on every device.

    Args:
      call: what each device does.
      placed_in, placed_out: what the operands and the results are: `tokens` `[b, n, heads, p]`, `rows` `[b, heads, n]` or
        `stream` `[b, n, d]`.
      real: one more operand where it is not None, `[b]`.
    Returns:
      What `call` returns, of the whole batch and all heads. Without a mesh of ours `call` sees all of the operands.
    """
    operands = [*operands] if real is None else [*operands, real]
    placed_in = [*placed_in, "batch"]
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or "data" not in mesh.axis_names or mesh.manual_axes:
        return call(*operands)
    batch, heads, _, _ = axes_for("cache/", 4) or (None,) * 4
    batch = batch if len(operands[0]) % _size(mesh, batch) == 0 else None
    heads = heads if operands[0].shape[2] % _size(mesh, heads) == 0 else None
    specs = {
        "tokens": PartitionSpec(batch, None, heads, None),
        "rows": PartitionSpec(batch, heads, None),
        "stream": PartitionSpec(batch, None, None),
        "batch": PartitionSpec(batch),
    }
    inside = tuple(specs[name] for name in placed_in[: len(operands)])
    outside = jax.tree.map(specs.get, placed_out)
    # vma: the types of a custom call's results do not say over which axes they differ.
    return jax.shard_map(call, in_specs=inside, out_specs=outside, check_vma=False)(*operands)


def _size(mesh, axes: Axis) -> int:
    return math.prod(mesh.shape[name] for name in ((axes,) if isinstance(axes, str) else axes or ()))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x: jax.Array, whole: PartitionSpec, split: PartitionSpec) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, whole)


_gathered.defvjp(
    lambda x, whole, split: (_gathered(x, whole, split), None),
    lambda whole, split, _, grad: (jax.lax.with_sharding_constraint(grad, split),),
)
