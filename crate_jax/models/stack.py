"""A stack of equal blocks: one scan over stacked parameters, rematerialisation, traces.

The parameters of all layers are stored stacked along a first axis of length `depth` whether the stack is scanned or
unrolled, so a checkpoint does not depend on that choice.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

from crate_jax.models.attention import KERNELS
from crate_jax.models.config import ModelConfig
from crate_jax.models.layers import Dropout
from crate_jax.models.partition import constrain, gather, on_mesh
from crate_jax.settings import one_of

# Named arrays of one block, see `crate_jax.models.trace` for the names.
Intermediates = dict[str, jax.Array]
# What is wanted of every block's intermediates (and `layer`, its number): False (nothing), True (all of them) or a function
# that reduces them inside the scan, so that a reading of every layer needs no memory for the activations of every layer.
Trace = bool | Callable[[Intermediates], Any]
# `edit(layer, tokens)` replaces the tokens `[b, n, d]` that a block gives, to see what depends on them.
Edit = Callable[[Any, jax.Array], jax.Array]

REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


# Paths in `partition.RULES`: the residual stream of all tokens, and of one while decoding.
TOKENS, TOKEN = "activation/tokens", "activation/token"


class Block(Protocol):
    """What a stack is made of: an `nnx.Module` from tokens to tokens of the same shape."""

    def __call__(
        self,
        x: jax.Array,
        /,
        *,
        return_intermediates: bool = False,
        real: int | None = None,
        wanted: int | None = None,
    ) -> tuple[jax.Array, Intermediates]:
        """One layer on the tokens `[b, n, d]`. A block without the arguments `real` and `wanted` is given and returns all
        tokens, and never padding. The blocks of a model with dropout also take `dropout`, which drops entries of what they
        add to the tokens.

        Args:
          x: the tokens.
          return_intermediates: see below.
          real: tokens that are no padding, the first ones; by default all. Nothing of the others may reach them.
          wanted: tokens that are returned, the first ones; by default all.
        Returns:
          `(tokens, intermediates)`. The intermediates are empty unless asked for; then they hold at least `normed`
          `[b, n, d]`, the layer-normed input, and of a white box all that `crate_jax.models.trace` lists.
        """


class CausalBlock(Block, Protocol):
    """A block that can also be run a token at a time."""

    def decode(self, x: jax.Array, cache: Any, position: jax.Array, /) -> tuple[jax.Array, Any]:
        """The layer on the token `[b, d]` at `position`, given what `cache` holds of those before it; `(token, cache)`."""


def _placed(x: jax.Array) -> jax.Array:
    """The residual stream at the entry of a block: split as the rules say and, where a model is not float32, laid out row by
    row. XLA for GPUs may else put the batch innermost for a norm's sums, and transpose before and after every product.

    On a mesh that is not ours, or among several devices without one, nobody knows here how the batch is split, and the
    constraint would gather all of it on every device.
    """
    x = constrain(x, TOKENS)
    mesh = jax.sharding.get_abstract_mesh()
    known = jax.device_count() == 1 if mesh.empty else "data" in mesh.axis_names
    if x.dtype == jnp.float32 or not known:
        return x
    return on_mesh(_by_rows, ("stream",), "stream", (x,), None)


def _by_rows(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


class Stack(nnx.Module):
    """`config.depth` equal blocks, each made by `make_block(rngs)` and a `Block`."""

    def __init__(self, make_block: Callable[[nnx.Rngs], Block], config: ModelConfig, *, rngs: nnx.Rngs):
        one_of("model.remat", config.remat, REMAT_POLICIES)
        self.depth, self.scan, self.remat = config.depth, config.scan, config.remat
        keys = jax.random.split(rngs.params(), self.depth)
        self.blocks = nnx.vmap(lambda key: make_block(nnx.Rngs(params=key)), in_axes=0)(keys)
        self.takes_part = {"real", "wanted"} <= inspect.signature(self.blocks.__call__).parameters.keys()
        self.unit = KERNELS[config.attention_kernel].unit if self.takes_part else 1

    def __call__(
        self,
        x: jax.Array,
        *,
        trace: Trace = False,
        wanted: int | None = None,
        dropout: Dropout | None = None,
        edit: Edit | None = None,
    ) -> tuple[jax.Array, Any]:
        """`x` through all blocks.

        Tokens are padded here, once for all layers, to a length that the kernel of attention takes; nothing outside sees it.

        Args:
          x: tokens `[b, n, d]`.
          trace: what is wanted of every block's intermediates.
          wanted: only the first so many tokens are returned, and the last layer is computed for them alone.
          dropout: see `Block`.
          edit: what becomes of the tokens after each block; it must treat every token alike. A trace shows them before it.
        Returns:
          `(tokens, trace)`. The trace has a leading axis of length `depth`; it is None when `trace` is False.
        """
        length = x.shape[1]
        if trace or not self.takes_part:
            # A trace shows all tokens of all layers, and none that are not there.
            x, traced = self._run(x, trace, None, self.depth, dropout, edit)
            return x[:, :wanted], traced
        extra = -length % self.unit
        real = length if extra else None
        x = jnp.pad(x, ((0, 0), (0, extra), (0, 0))) if extra else x
        # XLA adds up wrongly what heads and features split over tensor give for one or two tokens: on a data=2 × fsdp=2 ×
        # tensor=2 mesh outputs were off by 11 to 39 % of their norm (jax 0.10.2).
        if wanted is None or jax.sharding.get_abstract_mesh().shape.get("tensor", 1) > 1:
            return self._run(x, False, real, self.depth, dropout, edit)[0][:, :length][:, :wanted], None
        number = self.depth - 1
        x, _ = self._run(x, False, real, number, dropout, edit)
        graphdef, stacked = nnx.split(self.blocks)
        last = nnx.merge(graphdef, gather(jax.tree.map(lambda leaf: leaf[-1], stacked)))
        options: dict[str, Any] = {} if dropout is None else {"dropout": dropout.at(number)}
        x = last(_placed(x), real=real, wanted=wanted, **options)[0]
        return (x if edit is None else edit(number, x)), None

    def _run(
        self,
        x: jax.Array,
        trace: Trace,
        real: int | None,
        depth: int,
        dropout: Dropout | None = None,
        edit: Edit | None = None,
    ) -> tuple[jax.Array, Any]:
        """`x` through the first blocks."""
        graphdef, stacked = nnx.split(self.blocks)

        def body(x, layer):
            number, params = layer
            # At the entry of the block: constrained at its exit, the gradients of a scan came out wrong on a
            # data=2 × fsdp=2 × tensor=2 mesh (XLA of jax 0.10.2; the losses were right).
            block = nnx.merge(graphdef, gather(params))
            options: dict[str, Any] = {} if real is None else {"real": real}
            if dropout is not None:
                options["dropout"] = dropout.at(number)
            x, intermediates = block(_placed(x), return_intermediates=bool(trace), **options)
            intermediates = {**intermediates, "layer": number}
            x = x if edit is None else edit(number, x)
            return x, trace(intermediates) if callable(trace) else intermediates if trace else None

        if self.remat != "none":
            # A scan body is never merged with its recomputation by CSE, so the barriers that prevent it cost for nothing.
            body = jax.checkpoint(body, policy=REMAT_POLICIES[self.remat], prevent_cse=not self.scan)
        if self.scan:
            stacked = jax.tree.map(lambda leaf: leaf[:depth], stacked)
            x, traced = jax.lax.scan(body, x, (jnp.arange(depth), stacked))
            return constrain(x, TOKENS), traced
        layers = []
        for layer in enumerate(self._layers(stacked)[:depth]):
            x, traced = body(x, layer)
            layers.append(traced)
        traced = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers) if trace else None
        return constrain(x, TOKENS), traced

    def decoder(self) -> Callable[[jax.Array, Sequence[Any], jax.Array], tuple[jax.Array, tuple]]:
        """`decode(x, caches, position)`: one token `[b, d]` through all blocks, each `block.decode(x, cache, position)`.

        Unrolled even where the stack is scanned: caches that are separate arrays are updated in place, while those
        carried through a scan over layers would be copied for every token. The parameters of the layers are taken apart
        here, once for all tokens, because XLA does not move that out of a loop.
        """
        graphdef, stacked = nnx.split(self.blocks)
        blocks = [cast(CausalBlock, nnx.merge(graphdef, gather(params))) for params in self._layers(stacked)]

        def decode(x, caches, position):
            updated = []
            for block, cache in zip(blocks, caches, strict=True):
                x, cache = block.decode(constrain(x, TOKEN), cache, position)
                updated.append(cache)
            return constrain(x, TOKEN), tuple(updated)

        return decode

    def _layers(self, stacked: Any) -> list[Any]:
        """The parameters of each layer. Split, not indexed: the gradient of a split is one concatenation, that of an index a
        sum of `depth` arrays as large as the whole stack.
        """
        leaves, structure = jax.tree.flatten(stacked)
        parts = zip(*(jnp.split(leaf, self.depth) for leaf in leaves), strict=True)
        return [jax.tree.unflatten(structure, [part[0] for part in layer]) for layer in parts]
