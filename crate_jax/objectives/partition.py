"""An operation on batches of matrices that vmap and the partitioner leave whole."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec


def batchwise(compute, rule, *, shared=None):
    """`compute` on leading batch axes as one operation for vmap, and for sharding of the axes before the matrices.

    Args:
      compute: a function of arrays that returns a tuple of arrays, the first without the matrix axes.
      rule: its axes, as for `custom_partitioning`.
      shared: the position of an operand `[k, ...]` without batch axes, whose k the results have after theirs.
    """
    local = custom_partitioning(compute)

    def partition(mesh, operands, results):
        # Only the batch axes (and the k of a shared operand) stay sharded: a device needs whole matrices.
        batch = results[0].sharding.spec

        def whole(array, spec):
            return NamedSharding(mesh, PartitionSpec(*spec, *[None] * (len(array.shape) - len(spec))))

        outer = batch[: len(operands[0].shape) - 2]
        specs = [outer] * len(operands)
        if shared is not None:
            specs[shared] = batch[len(outer) :]
        return (
            mesh,
            compute,
            tuple(whole(array, batch) for array in results),
            tuple(whole(array, spec) for array, spec in zip(operands, specs, strict=True)),
        )

    local.def_partition(partition, sharding_rule=rule)

    @custom_vmap
    def operation(*operands):
        return local(*operands)

    @operation.def_vmap
    def _(size, batched, *operands):
        if shared is not None and batched[shared]:
            # Operands to share that differ along the mapped axis make no batch of one operation: one after the other.
            def one(mapped):
                filled = iter(mapped)
                return operation(*(next(filled) if b else x for b, x in zip(batched, operands, strict=True)))

            results = lax.map(one, tuple(x for b, x in zip(batched, operands, strict=True) if b))
        else:
            results = operation(
                *(
                    x if b or i == shared else jnp.broadcast_to(x, (size, *x.shape))
                    for i, (x, b) in enumerate(zip(operands, batched, strict=True))
                )
            )
        return results, (True,) * len(results)

    return operation


def on_explicit_axes(*arrays):
    """True where one of `arrays` lies on a mesh whose axes are explicit (`jax.make_mesh` makes such by default)."""
    return any(jax.typeof(x).sharding.mesh.explicit_axes for x in arrays if isinstance(x, jax.Array))
