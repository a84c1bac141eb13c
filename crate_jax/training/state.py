"""The state of a run, made on the mesh where it will live."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from crate_jax.models import Model, Params
from crate_jax.parallel.sharding import tree_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step reads and changes; `step` alone also fixes the position in the data and every random key.

    `sums` holds metrics added up since the last log, so that logged means do not depend on where a run was cut.
    `halted` is set by the first non-finite loss or gradient; from then on nothing changes, so the parameters that met
    it can be examined.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    ema: Params | None
    sums: dict[str, jax.Array]
    halted: jax.Array

    @property
    def eval_params(self) -> Params:
        """The averaged parameters when there are any, else the current ones."""
        return self.params if self.ema is None else self.ema


def init_state(
    model: Model,
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    ema: bool,
    metric_names: tuple[str, ...],
) -> TrainState:
    """A fresh state. Pure; see `make_state` for the sharded one."""
    params = model.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        sums={name: jnp.zeros((), jnp.float32) for name in metric_names},
        halted=jnp.zeros((), jnp.bool_),
    )


def abstract_state(
    model: Model, tx: optax.GradientTransformation, mesh: Mesh, *, ema: bool, metric_names: tuple[str, ...]
) -> TrainState:
    """Shapes, types and shardings of the state, without allocating anything."""
    abstract = jax.eval_shape(
        lambda: init_state(model, tx, jax.random.key(0), ema=ema, metric_names=metric_names)
    )
    return with_shardings(abstract, mesh)


def with_shardings(abstract: Any, mesh: Mesh) -> Any:
    """Abstract arrays placed by the sharding rules."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        tree_shardings(abstract, mesh),
    )


def shardings_of(abstract: Any) -> Any:
    """The shardings of a tree of ShapeDtypeStructs."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def make_state(
    model: Model, tx: optax.GradientTransformation, key: jax.Array, abstract: TrainState
) -> TrainState:
    """A fresh state, each array created on the devices that will hold it."""
    init = jax.jit(
        lambda key: init_state(
            model, tx, key, ema=abstract.ema is not None, metric_names=tuple(abstract.sums)
        ),
        out_shardings=shardings_of(abstract),
    )
    return init(key)
