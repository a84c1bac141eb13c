"""From a trained model to the same model in integers (see `portable`).

Kernels become int8 with one scale for each output, the scale of what goes in folded into their rows. Where the width of a
tensor can be bounded it is: a norm gives at most √d·max|g| + max|b|. Where it cannot, the largest values that the model
shows on some tokens decide; what goes beyond is cut off, which costs bits and breaks nothing.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import InputError, models
from crate_jax.compression import integers, portable
from crate_jax.compression.integers import FACTOR_BITS, RESIDUAL_BITS, STEPS, UNIT_BITS
from crate_jax.compression.portable import Description
from crate_jax.models import sampling
from crate_jax.models.layers import LAYER_NORM_EPS

# The residual stream and what goes into products may be twice as large as seen before it is cut.
MARGIN_BITS = 1
UPDATES = {"skip": 1, "negative": -1}


def draw(model: models.Model, params: models.Params, count: int = 16) -> np.ndarray:
    """Tokens `[count, n]` that the model draws itself: what to find the widths of its tensors on, without any data."""
    length = model.config.num_positions
    sampler = sampling.make_sampler(model, length, sampling.SamplingParams())
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(count))
    nothing = np.zeros((count, length), np.int32)
    return np.asarray(sampler(params, sampling.start(model, count), nothing, 0, keys)[1])


def quantise(model: models.Model, params: models.Params, tokens: np.ndarray, context: int) -> bytes:
    """The file of the portable model.

    Args:
      model: a CRATE-GPT or an iGPT, causal.
      params: its parameters.
      tokens: int `[b, n]`, typical ones, to see how large its tensors become.
      context: see `portable.Description`.
    Raises:
      InputError: a model that has a part for which there are no integers here.
    """
    config = model.config
    check(config)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    seen = _observe(model, params, tokens)
    tables = integers.make_tables()
    residual = min(_point(seen.residual, RESIDUAL_BITS), RESIDUAL_BITS - 1)
    make = _crate_layers if config.family == "crate_gpt" else _igpt_layers
    layers, widths = make(model, params, seen, residual)
    norm, head_point = _norm(params["head_norm"], residual)
    embeddings = {name: params[f"{name[:-1]}_embedding"] for name in ("tokens", "positions")}
    points = {name: _point(np.abs(table).max(), FACTOR_BITS, 0) for name, table in embeddings.items()}
    arrays = {
        **{name: _fixed(table, points[name]).astype(np.int16) for name, table in embeddings.items()},
        "blocks": layers,
        "head_norm": norm,
        "head": _dense(params["head"]["kernel"], 2.0**-head_point, STEPS),
        "tables": tables,
    }
    description = Description(
        family=config.family,
        vocab_size=config.vocab_size,
        num_positions=config.num_positions,
        depth=config.depth,
        heads=config.heads,
        head_dim=config.head_dim,
        context=context,
        residual=residual,
        tokens=points["tokens"],
        positions=points["positions"],
        **widths,
    )
    return portable.save(description, arrays)


def check(config: Any) -> None:
    """Raises InputError for a model that has a part for which there are no integers here."""
    if not (isinstance(config, models.TokenConfig) and config.causal):
        raise InputError(
            f"model.family: found {config.family!r}; accepted: a causal token model (crate_gpt, igpt)"
        )
    limits = (
        ("dim", integers.MAX_WIDTH),
        ("num_positions", integers.MAX_POSITIONS),
        ("vocab_size", integers.MAX_VOCAB),
        ("head_dim", integers.MAX_HEAD_DIM),
    )
    for name, most in limits:
        if getattr(config, name) > most:
            raise InputError(
                f"model.{name}: found {getattr(config, name)}; accepted in integers: at most {most}"
            )
    if isinstance(config, models.CRATEGPTConfig):
        choices = (
            ("update", tuple(UPDATES)),
            ("attention", ("softmax",)),
            ("ista", ("released", "orthogonal")),
        )
        for name, accepted in choices:
            if getattr(config, name) not in accepted:
                raise InputError(
                    f"model.{name}: found {getattr(config, name)!r}; accepted in integers: {', '.join(accepted)}"
                )


class _Seen(NamedTuple):
    """The largest values: of the residual stream, and for each layer what a family needs."""

    residual: float
    layers: dict[str, np.ndarray]


def _observe(model: models.Model, params: models.Params, tokens: np.ndarray) -> _Seen:
    def largest(x, axes=None):
        return jnp.max(jnp.abs(x), axis=axes)

    def crate(seen):
        stream = largest(jnp.stack([seen["mssa_in"], seen["mssa_out"], seen["out"]]))
        return {"residual": stream, "projected": largest(seen["subspace_in"], (0, 2))}

    def igpt(seen):
        stream = jnp.maximum(largest(seen["attention_out"]), largest(seen["out"]))
        return {"residual": stream, "normed": seen["normed"], "attention_out": seen["attention_out"]}

    reading = crate if model.config.family == "crate_gpt" else igpt
    apply = jax.jit(lambda params, tokens: model.apply(params, tokens, trace=reading)[1])
    traced = jax.tree.map(np.asarray, apply(jax.tree.map(np.float32, params), tokens))
    embedded = sum(np.abs(params[f"{name}_embedding"]).max() for name in ("token", "position"))
    return _Seen(max(float(traced["residual"].max()), embedded), traced)


def _crate_layers(
    model: models.Model, params: models.Params, seen: _Seen, residual: int
) -> tuple[list[dict], dict[str, Any]]:
    config: Any = model.config
    layers, normed = [], {"mssa": [], "ista": []}
    for number in range(config.depth):
        p = jax.tree.map(lambda leaf: leaf[number], params["blocks"]["blocks"])  # noqa: B023
        step, penalty = (p["ista"].get(name, getattr(config, name)) for name in ("step_size", "penalty"))
        kappa = UPDATES[config.update] * p.get("compression_step", config.compression_step)
        mssa_norm, mssa_point = _norm(p["mssa_norm"], residual)
        ista_norm, ista_point = _norm(p["ista_norm"], residual)
        bases = np.moveaxis(p["mssa"]["bases"], 0, 1).reshape(config.dim, -1)
        cached = np.maximum(seen.layers["projected"][number].reshape(-1), 1e-6) / 127
        kernel, scale = _kernel(bases)
        query, scores = _attention(cached * cached * 127, cached, config.heads)
        dictionary, threshold = _dictionary(config, p["ista"]["dictionary"], step, penalty)
        output = _output(config, p["mssa"]).reshape(-1, config.dim)
        layers.append(
            {
                "mssa_norm": mssa_norm,
                "bases": kernel,
                "query": _scale(scale * 2.0**-mssa_point * query),
                "cache": _scale(scale * 2.0**-mssa_point / cached),
                "scores": scores,
                "output": _dense(
                    kappa * cached[:, None] * output / 128,
                    1.0,
                    2.0**residual,
                    kappa * p["mssa"].get("bias", 0),
                ),
                "ista_norm": ista_norm,
                "dictionary": _dense(dictionary, 2.0**-ista_point, 2.0**residual, -threshold),
            }
        )
        normed["mssa"].append(mssa_point)
        normed["ista"].append(ista_point)
    return layers, {"normed": normed, "skip": config.ista == "released"}


def _dictionary(config: Any, dictionary: np.ndarray, step: Any, penalty: Any) -> tuple[np.ndarray, Any]:
    """What ISTA multiplies the tokens by, the tokens themselves left out if they are added, and its threshold."""
    if config.ista == "released":
        return step * (dictionary - dictionary.T @ dictionary), step * penalty
    alpha = config.dim / (config.sequence_length * config.eps_sq)
    return (1 + 4 / (9 * (1 + alpha))) * dictionary, 4 * penalty / (9 * alpha)


def _output(config: Any, mssa: dict[str, np.ndarray]) -> np.ndarray:
    """O `[k, p, d]`, as `models.operators.MSSA` forms it."""
    bases = mssa["bases"]
    heads, dim, head_dim = bases.shape
    if config.output == "tied":
        return head_dim / (config.sequence_length * config.eps_sq) * np.swapaxes(bases, 1, 2)
    if config.output == "transposed":
        return np.swapaxes(bases, 0, 1).reshape(heads, head_dim, dim)
    if config.output == "identity":
        return np.eye(dim).reshape(heads, head_dim, dim)
    return mssa["output" if config.output == "free" else "fixed_output"]


def _igpt_layers(
    model: models.Model, params: models.Params, seen: _Seen, residual: int
) -> tuple[list[dict], dict[str, Any]]:
    config = model.config
    layers, normed, hidden_points = [], {"attention": [], "mlp": []}, []
    for number in range(config.depth):
        p = jax.tree.map(lambda leaf: leaf[number], params["blocks"]["blocks"])  # noqa: B023
        attention_norm, attention_point = _norm(p["attention_norm"], residual)
        mlp_norm, mlp_point = _norm(p["mlp_norm"], residual)
        kernels = np.moveaxis(p["qkv"]["kernel"], 1, 0).reshape(3, config.dim, -1)
        biases = p["qkv"].get("bias", np.zeros((3, config.heads, config.head_dim))).reshape(3, -1)
        projected = np.einsum("bnd,sdk->sbnk", seen.layers["normed"][number], kernels)
        widest = np.maximum(np.abs(projected + biases[:, None, None]).max(axis=(1, 2)), 1e-6)
        key, value = widest[1:] / 127
        query, scores = _attention(widest[0] * key, key, config.heads)
        into = partial_dense(2.0**-attention_point)
        hidden = _mlp_width(p, seen.layers["attention_out"][number])
        hidden_point = _point(hidden, FACTOR_BITS)
        output = p["attention_output"]["kernel"].reshape(-1, config.dim)
        out_bias, mlp_bias = (p[name].get("bias", 0) for name in ("attention_output", "mlp_out"))
        layers.append(
            {
                "attention_norm": attention_norm,
                "query": into(kernels[0], query, biases[0]),
                "key": into(kernels[1], 1 / key, biases[1]),
                "value": into(kernels[2], 1 / value, biases[2]),
                "scores": scores,
                "attention_output": _dense(value[:, None] * output / 128, 1.0, 2.0**residual, out_bias),
                "mlp_norm": mlp_norm,
                "mlp_in": _dense(
                    p["mlp_in"]["kernel"], 2.0**-mlp_point, 2.0**hidden_point, p["mlp_in"].get("bias", 0)
                ),
                "mlp_out": _dense(p["mlp_out"]["kernel"], 2.0**-hidden_point, 2.0**residual, mlp_bias),
            }
        )
        normed["attention"].append(attention_point)
        normed["mlp"].append(mlp_point)
        hidden_points.append(hidden_point)
    return layers, {"normed": normed, "hidden": tuple(hidden_points)}


def _mlp_width(p: dict[str, Any], attention_out: np.ndarray) -> float:
    """The largest |h| before the activation."""
    rate = 1 / np.sqrt(np.mean(attention_out**2, axis=-1, keepdims=True) + LAYER_NORM_EPS)
    hidden = (attention_out * rate * p["mlp_norm"]["scale"]) @ p["mlp_in"]["kernel"]
    return float(np.abs(hidden + p["mlp_in"].get("bias", 0)).max())


def _attention(widest: np.ndarray, keys: np.ndarray, heads: int) -> tuple[np.ndarray, dict]:
    """What a query's features are multiplied by, and the scale of the scores, so that features of a cache in units of `keys`
    can be multiplied with them.

    Args:
      widest: the largest query feature times the unit of its key, `[h·p]`.
      keys: the units, `[h·p]`.
      heads: h.
    """
    widest = widest.reshape(heads, -1)
    points = np.array([_point(row.max(), FACTOR_BITS) for row in widest])
    factor = STEPS * widest.shape[1] ** -0.5 * 2.0**-points
    # A head whose scores are so large that one step of a query is more than a step of the exponent: its queries are cut.
    extra = np.maximum(np.ceil(np.log2(factor / 0.499)), 0)
    query = keys * np.repeat(2.0 ** (points + extra), widest.shape[1])
    return query, _scale((factor * 2.0**-extra)[:, None])


def partial_dense(unit: float):
    """`_dense` with the unit of what goes in."""

    def dense(kernel, wanted, bias):
        return _dense(kernel, unit, wanted, bias)

    return dense


def _dense(kernel: np.ndarray, unit: float, wanted: Any, bias: Any = 0.0) -> dict[str, np.ndarray]:
    """x W + b for x in units of `unit`, the result times `wanted`."""
    small, scale = _kernel(kernel)
    wanted = np.broadcast_to(np.asarray(wanted, np.float64), scale.shape)
    bias = np.broadcast_to(np.rint(np.asarray(bias) * wanted), scale.shape).astype(np.int32)
    return {"kernel": small, **_scale(scale * unit * wanted), "bias": bias}


def _kernel(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 `[d, k]`, scale `[k]`).

    Raises:
      InputError: so many features that their sum may overflow.
    """
    scale = np.maximum(np.abs(kernel).max(axis=0), 1e-12) / 127
    small = np.rint(kernel / scale).astype(np.int8)
    if np.abs(small.astype(np.int64)).sum(axis=0).max() >= 2 ** (31 - FACTOR_BITS):
        raise InputError(
            f"model.dim: found products over {len(kernel)} features; accepted: fewer, in integers"
        )
    return small, scale


def _norm(norm: dict[str, np.ndarray], residual: int) -> tuple[dict[str, np.ndarray], int]:
    """The arrays of a norm, and the bits after the point of what it gives."""
    gain = norm["scale"]
    bias = norm.get("bias", np.zeros_like(gain))
    width = len(gain)
    point = _point(math.sqrt(width) * np.abs(gain).max() + np.abs(bias).max(), FACTOR_BITS, 0)
    eps = np.int32(round(width * LAYER_NORM_EPS * 4.0**residual))
    scale = _scale(math.sqrt(width) * gain * 2.0 ** (point - UNIT_BITS))
    return {**scale, "bias": _fixed(bias, point), "eps": eps}, point


def _scale(factor: np.ndarray) -> dict[str, np.ndarray]:
    """Raises InputError where the factor is too large for one."""
    try:
        multiplier, shift = integers.make_scale(factor)
    except ValueError as error:
        raise InputError(f"the model cannot be written in integers: {error}") from None
    return {"multiplier": multiplier.astype(np.int16), "shift": shift.astype(np.int8)}


def _point(largest: float, bits: int, margin: int = MARGIN_BITS) -> int:
    """Bits after the point so that `largest` fits into `bits` bits with `margin` to spare."""
    return bits - margin - math.frexp(largest)[1]


def _fixed(x: np.ndarray, point: int) -> np.ndarray:
    return np.rint(np.ldexp(x, point)).astype(np.int32)
