"""What the output owes to one head or one atom: it is taken away and the change in the logits measured."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from crate_jax import InputError
from crate_jax.models import Model, Params

# Family → what holds a head's share of the output: path in the parameters of the stacked blocks. Without it the head adds
# nothing (biases stay). In a white box without U_k all its coordinates, and so what MSSA makes of them, are zero.
HEADS = {
    "crate": ("mssa", "bases"),
    "crate_alpha": ("mssa", "bases"),
    "crate_gpt": ("mssa", "bases"),
    "vit": ("attention_output", "kernel"),
    "igpt": ("attention_output", "kernel"),
}
ATOMS = ("crate", "crate_alpha")


def without_head(params: Params, family: str, layer: Any, head: Any) -> Params:
    """The parameters of a model in which one head adds nothing.

    Args:
      params: of a model of one of HEADS.
      family: its key.
      layer, head: whole numbers from 0; may be traced.
    Raises:
      InputError: a family without heads that can be taken away.
    """
    if family not in HEADS:
        raise InputError(f"ablation of a head: found {family}; accepted: {', '.join(HEADS)}")
    return _replaced(params, HEADS[family], lambda leaf: leaf.at[layer, head].set(0))


def logits_without_head(model: Model, layer: Any, head: Any) -> Callable[[Params, jax.Array], jax.Array]:
    """`apply(params, inputs)`: the logits of a model in which one head adds nothing.

    Raises:
      InputError: a layer or head that is not there, or a family without heads.
    """
    check_place(model, layer=layer, head=head)

    def apply(params, inputs):
        return _logits(model.apply(without_head(params, model.config.family, layer, head), inputs)[0])

    return apply


def logits_without_atom(model: Model, layer: Any, atom: Any) -> Callable[[Params, jax.Array], jax.Array]:
    """`apply(params, inputs)`: the logits of an image classifier in which the code of one atom is zero for all tokens.

    A CRATE's codes are the tokens that its layer gives, so one of their entries becomes zero; in a CRATE-α the atom's column
    of the decoder does.

    Raises:
      InputError: a layer or atom that is not there, or a family whose atoms cannot be taken away.
    """
    check_place(model, layer=layer, atom=atom)
    if model.config.family == "crate_alpha":

        def alpha(params, inputs):
            edited = _replaced(params, ("odl", "decoder"), lambda leaf: leaf.at[layer, :, atom].set(0))
            return model.apply(edited, inputs)[0]

        return alpha

    def crate(params, inputs):
        def edit(number, tokens):
            gone = (number == layer) & (jnp.arange(tokens.shape[-1]) == atom)
            return jnp.where(gone, 0, tokens)

        return model.apply(params, inputs, edit=edit)[0]

    return crate


def logit_change(logits: jax.Array, changed: jax.Array) -> dict[str, jax.Array]:
    """How far logits have moved, per example.

    - `change`: ‖Δ‖₂/‖centred logits‖₂ with the mean over classes, which decides nothing, taken out of both.
    - `flipped`: 1 where another class is now the first.
    - `divergence`: KL(softmax(logits) ‖ softmax(changed)), in nats.

    Args:
      logits, changed: `[…, classes]`.
    """
    centred = logits - logits.mean(axis=-1, keepdims=True)
    moved = changed - changed.mean(axis=-1, keepdims=True) - centred
    before, after = jax.nn.log_softmax(logits), jax.nn.log_softmax(changed)
    norm = jnp.maximum(jnp.linalg.norm(centred, axis=-1), 1e-12)
    return {
        "change": jnp.linalg.norm(moved, axis=-1) / norm,
        "flipped": (logits.argmax(axis=-1) != changed.argmax(axis=-1)).astype(jnp.float32),
        "divergence": (jnp.exp(before) * (before - after)).sum(axis=-1),
    }


def check_place(model: Model, *, layer: Any, head: Any = None, atom: Any = None) -> None:
    """Raises InputError unless the model has this layer, and head or atom; numbers that are traced are not looked at."""
    config: Any = model.config
    family = config.family
    if head is not None and family not in HEADS:
        raise InputError(f"ablation of a head: found {family}; accepted: {', '.join(HEADS)}")
    if atom is not None and family not in ATOMS:
        raise InputError(f"ablation of an atom: found {family}; accepted: {', '.join(ATOMS)}")
    ranges = {"layer": (layer, config.depth), "head": (head, config.heads)}
    if atom is not None:
        ranges["atom"] = (atom, config.dim * getattr(config, "overcomplete", 1))
    for name, (value, count) in ranges.items():
        if value is not None and not isinstance(value, jax.core.Tracer) and not 0 <= int(value) < count:
            raise InputError(f"{name}: found {value}; accepted: 0 to {count - 1}")


def _replaced(params: Params, path: tuple[str, str], change: Callable[[jax.Array], jax.Array]) -> Params:
    blocks = params["blocks"]["blocks"]
    module, name = path
    part = {**blocks[module], name: change(jnp.asarray(blocks[module][name]))}
    return {**params, "blocks": {**params["blocks"], "blocks": {**blocks, module: part}}}


def _logits(output: Any) -> jax.Array:
    """Of a token model with a head for classes, those of the tokens."""
    return output[0] if isinstance(output, tuple) else output
