"""An operation on batches of matrices that vmap and the partitioner leave whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
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


def everywhere(function):
    """`function` of arrays, with the same fp32 numbers under `jax_enable_x64` and on a mesh of explicit axes (what
    `jax.make_mesh` makes by default).

    float64 numbers lose the type that would spread to the result. On explicit axes XLA chooses the shardings inside, and a
    result keeps the sharding of the first such array on the axes they share.
    """

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        args, kwargs = jax.tree.map(_number, (args, kwargs))
        leaves, tree = jax.tree.flatten((args, kwargs))
        places = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]
        arrays = [leaves[i] for i in places]
        explicit = [x for x in arrays if jax.typeof(x).sharding.mesh.explicit_axes]
        if not explicit:
            return function(*args, **kwargs)

        def call(*arrays):
            filled = list(leaves)
            for i, x in zip(places, arrays, strict=True):
                filled[i] = x
            args, kwargs = jax.tree.unflatten(tree, filled)
            return function(*args, **kwargs)

        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            shapes = jax.eval_shape(call, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays))
        first = jax.typeof(explicit[0])

        def sharding(result):
            shared = zip(first.shape, first.sharding.spec, result.shape, strict=False)
            spec = [axis if a == b else None for a, axis, b in shared]
            return NamedSharding(first.sharding.mesh, PartitionSpec(*spec))

        return jax.sharding.auto_axes(call, out_sharding=jax.tree.map(sharding, shapes))(*arrays)

    return wrapper


def _number(x):
    """A float64 number as a Python number, which takes the type of what it meets, or float32 where it is traced."""
    if getattr(x, "ndim", None) != 0 or x.dtype != np.float64:
        return x
    return x.astype(jnp.float32) if isinstance(x, jax.core.Tracer) else float(x)
