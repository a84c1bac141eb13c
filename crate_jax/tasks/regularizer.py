"""Terms on the layers of a white box, added to its training loss and computed inside the scan over layers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from crate_jax import InputError, models, objectives
from crate_jax.models import Trace
from crate_jax.runs.config import Config, RegularizerConfig

# Settings that only the tasks with these terms use.
SETTINGS = ("regularizer.sparse_rate_reduction", "regularizer.orthogonality")


class Regularizer(NamedTuple):
    """`reading(key)` is what to pass as `trace=`, `total(layers)` the sum to add to the loss and its parts as metrics.

    `layers` is the trace that came back, scalars of each layer.
    """

    reading: Callable[[jax.Array], Trace]
    total: Callable[[dict[str, jax.Array] | None], tuple[jax.Array | float, dict[str, jax.Array]]]


def make_regularizer(config: Config) -> Regularizer:
    """The terms that `config.regularizer` weighs; none of them costs anything at weight 0.

    - `sparse_rate_reduction`: (R^c(Z; U) + λ‖Z‖₁ − R(Z))/n of a layer's output, in nats a token, averaged over the batch
      and over the layers that `layers` names; the objective itself as a loss (arXiv 2411.17182). For CRATE-α ‖·‖₁ is that
      of the codes.
    - `orthogonality`: ‖UᵀU − I‖²_F/(k p), U = [U_1 … U_k] `[d, k·p]`, averaged over all layers: bases orthonormal and
      incoherent with one another, as the derivation takes them to be.

    Raises:
      InputError: a black box, or layers that do not exist.
    """
    options, depth = config.regularizer, config.model.depth
    if not (options.sparse_rate_reduction or options.orthogonality):
        return Regularizer(lambda key: False, lambda layers: (0.0, {}))
    if models.FAMILIES[config.model.family].readings is None:
        known = ", ".join(name for name, family in models.FAMILIES.items() if family.readings is not None)
        raise InputError(
            f"regularizer: model.family {config.model.family!r} is a black box; accepted: {known}"
        )
    chosen = _layers(options.layers, depth)

    def reading(key: jax.Array) -> Trace:
        layers = jax.nn.one_hot(jax.random.randint(key, (), 0, depth), depth) if chosen is None else chosen

        def read(report: dict[str, jax.Array]) -> dict[str, jax.Array]:
            values = {}
            if options.sparse_rate_reduction:
                # Of the layers that are not chosen nothing is computed, of the others nothing kept for the gradient.
                rate = jax.checkpoint(lambda report: _sparse_rate_reduction(report, options))
                needed = {name: report[name] for name in ("out", "ista_out", "bases")}
                picked = jnp.asarray(layers)[report["layer"]] > 0
                value = jax.lax.cond(picked, rate, lambda report: jnp.float32(0), needed)
                values["sparse_rate_reduction"] = value / jnp.sum(jnp.asarray(layers))
            if options.orthogonality:
                values["orthogonality"] = _orthogonality(report["bases"]) / depth
            return values

        return read

    def total(layers: dict[str, jax.Array]):
        terms = {name: jnp.sum(values) for name, values in layers.items()}
        return sum(getattr(options, name) * value for name, value in terms.items()), terms

    return Regularizer(reading, total)


def _sparse_rate_reduction(report: dict[str, jax.Array], options: RegularizerConfig) -> jax.Array:
    z, eps_sq = report["out"].astype(jnp.float32), options.eps_sq
    whole = objectives.coding_rate(z, eps_sq=eps_sq)
    # One after the other: two batched factorisations at once can starve each other of threads (see `models.trace`).
    z, whole = jax.lax.optimization_barrier((z, whole))
    within = objectives.subspace_coding_rate(z, report["bases"], eps_sq=eps_sq)
    sparsity = objectives.l1_norm(report["ista_out"])
    return jnp.mean(within + options.penalty * sparsity - whole) / z.shape[1]


def _orthogonality(bases: jax.Array) -> jax.Array:
    heads, dim, head_dim = bases.shape
    flat = jnp.swapaxes(bases, 0, 1).reshape(dim, heads * head_dim)
    return jnp.sum(jnp.square(flat.T @ flat - jnp.eye(heads * head_dim))) / (heads * head_dim)


def _layers(text: str, depth: int) -> list[float] | None:
    """1 for every layer that `text` names; None for a random one each step."""
    if text == "random":
        return None
    numbers = (
        range(depth) if text == "all" else [int(part) if part.isdigit() else -1 for part in text.split(",")]
    )
    if not all(0 <= number < depth for number in numbers):
        raise InputError(
            f"regularizer.layers: found {text!r}; accepted: all, random, or numbers from 0 to {depth - 1} with commas"
        )
    return [float(layer in numbers) for layer in range(depth)]
