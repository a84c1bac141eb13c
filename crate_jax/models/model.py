"""The door between Flax and everything else: a model is `init` and `apply` over a plain nested dict of arrays."""

import re
from collections.abc import Callable
from typing import Any, Generic, Protocol, cast

import jax
import numpy as np
from flax import nnx

from crate_jax import InputError
from crate_jax.models.config import ConfigT, resolve
from crate_jax.models.partition import gather
from crate_jax.models.stack import Trace

Params = dict[str, Any]
# Parameters that every module converts to the type that it computes in before it uses them.
MATRIX = re.compile(r"'(kernel|output|fixed_output)'\]$")
# What a causal model keeps of earlier tokens: a pytree of arrays `[b, heads, length, head_dim]`.
Cache = Any
Decode = Callable[[jax.Array, Cache, jax.Array], tuple[jax.Array, Cache]]


class Module(Protocol):
    """What a family's `nnx.Module` is called with."""

    def __call__(
        self, inputs: jax.Array, /, *, train: bool = False, key: jax.Array | None = None, trace: Trace = False
    ) -> tuple[Any, Any]:
        """See `Model.apply`."""


class CausalModule(Module, Protocol):
    """A module that predicts tokens one after the other."""

    @staticmethod
    def init_cache(config: Any, batch_size: int, length: int, /) -> Cache:
        """See `Model.init_cache`."""

    def decoder(self) -> Decode:
        """See `Model.decoder`."""


class Model(Generic[ConfigT]):
    """A module of this package as two pure functions.

    NNX stays behind this class: optimisers, checkpoints, sharding rules and weight tables see dicts of arrays only.

    Args:
      config: the frozen dataclass that describes the model; kept as `model.config`.
      build: `build(config, rngs)` returns the `nnx.Module`.
      readings: what can be measured in each layer, as a function to pass as `trace=`; None when the layers' meaning is
        not known (a black box). Kept as `model.readings`.
      platform, deterministic: of the devices that the model will run on, and whether it must give the same bits every time.
        What `auto` in the configuration becomes there is kept as `model.resolved`, of which the module is built (see
        `config.resolve`).
    """

    def __init__(
        self,
        config: ConfigT,
        build: Callable[[Any, nnx.Rngs], Module],
        readings: Callable[[dict], dict] | None = None,
        platform: str | None = None,
        *,
        deterministic: bool = False,
    ):
        self.config, self.readings = config, readings
        self.resolved = resolve(config, platform, deterministic=deterministic)
        self._build = build
        # Shapes only: no parameter is allocated until `init`.
        self._graphdef, state = nnx.split(nnx.eval_shape(lambda: build(self.resolved, nnx.Rngs(params=0))))
        self.abstract_params: Params = nnx.to_pure_dict(state)

    @property
    def num_params(self) -> int:
        """Number of scalars in the parameters."""
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.abstract_params))

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32. Pure: jit it with `out_shardings` to make them where they belong."""
        return nnx.to_pure_dict(nnx.state(self._build(self.resolved, nnx.Rngs(params=key)), nnx.Param))

    def apply(
        self,
        params: Params,
        inputs: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        trace: Trace = False,
        **options: Any,
    ) -> tuple[jax.Array, Any]:
        """The forward pass.

        Args:
          params: as returned by `init`.
          inputs: normalised images `[b, h, w, c]`, or what the model's own docstring says.
          train: whether random regularisers (if the model has any) are on; they then need `key`.
          trace: False, True for every named array of every layer, or a function of one block's intermediates.
          **options: what else the model's own docstring names, such as the `noise` of a CRATE-MAE.
        Returns:
          `(output, trace)`; the trace's arrays have a leading layer axis, and it is None when not asked for.
        """
        return nnx.merge(self._graphdef, gather(params))(inputs, train=train, key=key, trace=trace, **options)

    def init_cache(self, batch_size: int, length: int | None = None) -> Cache:
        """An empty cache for `decode`: one or more arrays per layer, `[b, heads, length, head_dim]`, of static shape, in the
        type that the model computes in. It has room for the first `length` positions, all of them by default; positions
        may be appended later.

        Raises:
          InputError: a model that does not predict tokens one after the other.
        """
        config: Any = self.resolved
        if not getattr(config, "causal", False):
            raise InputError(
                f"model.family: found {self.config.family!r}, which does not predict tokens one after the other; "
                "accepted: a causal token model (igpt, crate_gpt)"
            )
        module = cast(type[CausalModule], self._build)
        return module.init_cache(config, batch_size, length or config.num_positions)

    def decode(
        self, params: Params, previous: jax.Array, cache: Cache, position: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """One step of the forward pass: the prediction of the token at `position` from those before it.

        Calling it for positions 0, 1, 2, … with the cache handed on gives the rows of `apply`'s logits.

        Args:
          params: as returned by `init`.
          previous: int `[b]`, the tokens at `position − 1`; not looked at where `position` is 0.
          cache: from `init_cache`, or from the step before; it has room for `position`.
          position: int scalar, may be traced.
        Returns:
          `(logits [b, vocab_size] float32, cache)`.
        """
        return self.decoder(params)(previous, cache, position)

    def decoder(self, params: Params) -> Decode:
        """`decode` with the parameters bound and taken apart: make it outside of a loop over positions."""
        # The matrices in the type that products run in: XLA for GPUs leaves a conversion in the loop, where it takes longer
        # than the product.
        dtype = self.resolved.compute_dtype

        def converted(path, leaf):
            return leaf.astype(dtype) if MATRIX.search(jax.tree_util.keystr(path)) else leaf

        params = jax.tree_util.tree_map_with_path(converted, params)
        # Every token needs every layer. Gathered layer by layer, XLA gave wrong logits on a data=2 × fsdp=2 × tensor=2 mesh.
        return cast(CausalModule, nnx.merge(self._graphdef, gather(params, stacks=True))).decoder()
