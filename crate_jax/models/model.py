"""The door between Flax and everything else: a model is `init` and `apply` over a plain nested dict of arrays."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from crate_jax.models.stack import Trace

Params = dict[str, Any]


class Model:
    """A module of this package as two pure functions.

    NNX stays behind this class: optimisers, checkpoints, sharding rules and weight tables see dicts of arrays only.

    Args:
      config: the frozen dataclass that describes the model; kept as `model.config`.
      build: `build(config, rngs)` returns the `nnx.Module`.
      readings: what can be measured in each layer, as a function to pass as `trace=`; None when the layers' meaning is
        not known (a black box). Kept as `model.readings`.
    """

    def __init__(
        self,
        config: Any,
        build: Callable[[Any, nnx.Rngs], nnx.Module],
        readings: Callable[[dict], dict] | None = None,
    ):
        self.config, self.readings = config, readings
        self._build = build
        # Shapes only: no parameter is allocated until `init`.
        self._graphdef, state = nnx.split(nnx.eval_shape(lambda: build(config, nnx.Rngs(params=0))))
        self.abstract_params: Params = nnx.to_pure_dict(state)

    @property
    def num_params(self) -> int:
        """Number of scalars in the parameters."""
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.abstract_params))

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32. Pure: jit it with `out_shardings` to make them where they belong."""
        return nnx.to_pure_dict(nnx.state(self._build(self.config, nnx.Rngs(params=key)), nnx.Param))

    def apply(
        self,
        params: Params,
        inputs: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        trace: Trace = False,
    ) -> tuple[jax.Array, Any]:
        """The forward pass.

        Args:
          params: as returned by `init`.
          inputs: normalised images `[b, h, w, c]`, or what the model's own docstring says.
          train: whether random regularisers (if the model has any) are on; they then need `key`.
          trace: False, True for every named array of every layer, or a function of one block's report.
        Returns:
          `(output, trace)`; the trace's arrays have a leading layer axis, and it is None when not asked for.
        """
        return nnx.merge(self._graphdef, params)(inputs, train=train, key=key, trace=trace)
