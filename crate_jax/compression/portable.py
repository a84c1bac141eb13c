"""A causal token model in integers, in a file: it gives the same frequencies on every machine, so its code decodes anywhere.

    data = quantise.quantise(model, params, tokens)   # once, on one machine
    model = portable.load(data)
    sizes, cache = model.decoder(model.params)(previous, cache, position)

The file is an .npz of integers: a kernel is int8 with a scale for each output, activations have 15 bits and the cache 8,
norms, softmax and activations go through tables that are in the file too. `integers` has the arithmetic and its bounds.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import InputError
from crate_jax.compression import integers
from crate_jax.compression.integers import RESIDUAL_BITS, Scale, attend, product, saturate, scaled, shifted

FORMAT = "crate_jax portable model"
VERSION = 1
DESCRIPTION = "description"


@dataclasses.dataclass(frozen=True)
class Description:
    """What the arrays of a portable model are to be used for.

    Attributes:
      family: crate_gpt or igpt.
      vocab_size, num_positions, depth, heads, head_dim: as in `models.TokenConfig`.
      context: how many symbols before a window it sees again, by default; see `codec.Layout`.
      residual, normed, hidden: bits after the point of the residual stream, of what a norm gives, in the MLP.
      tokens, positions: the same of the embeddings.
      skip: whether ISTA's tokens are added to the product with its dictionary.
    """

    family: str
    vocab_size: int
    num_positions: int
    depth: int
    heads: int
    head_dim: int
    context: int
    residual: int
    tokens: int
    positions: int
    normed: dict[str, tuple[int, ...]]
    hidden: tuple[int, ...] = ()
    skip: bool = True


class Portable:
    """A model file, opened; a `codec.Predictor`."""

    numerics = "portable"
    environment = ""  # Nothing of the machine matters.

    def __init__(self, description: Description, params: dict[str, Any], digest: bytes):
        self.description, self.params, self.digest = description, params, digest
        self.vocab_size, self.num_positions = description.vocab_size, description.num_positions
        self.context = description.context

    def init_cache(self, batch_size: int) -> list:
        """Empty caches `[heads, n, p, b]` int8: CRATE's projections, or keys and values."""
        about = self.description
        shape = (about.heads, about.num_positions, about.head_dim, batch_size)
        kinds = 1 if about.family == "crate_gpt" else 2
        return [tuple(jnp.zeros(shape, jnp.int8) for _ in range(kinds)) for _ in range(about.depth)]

    def decoder(self, params: dict[str, Any]) -> Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, Any]]:
        """`decode(previous [b], caches, position) -> (sizes int32 [b, v], caches)`; see `codec.Predictor`."""
        about, tables = self.description, params["tables"]
        block = _crate_block if about.family == "crate_gpt" else _igpt_block

        def decode(previous, caches, position):
            previous = jnp.where(position == 0, about.vocab_size, previous)
            tokens = params["tokens"][previous].astype(jnp.int32)
            positions = params["positions"][position].astype(jnp.int32)
            x = _moved(tokens, about.tokens, about.residual) + _moved(
                positions, about.positions, about.residual
            )
            x, updated = saturate(x, RESIDUAL_BITS), []
            for number, (layer, cache) in enumerate(zip(params["blocks"], caches, strict=True)):
                x, cache = block(about, number, layer, tables, x, cache, position)
                updated.append(cache)
            logits = _dense(_normed(about, x, params["head_norm"], tables), params["head"])
            return integers.frequencies(logits, tables["symbols"]), updated

        return decode


def _crate_block(about, number, layer, tables, x, cache, position):
    """As `models.crate.CRATEBlock.decode`."""
    normed = _normed(about, x, layer["mssa_norm"], tables)
    projected = product(normed, layer["bases"])
    tokens = _kept(cache[0], _heads(scaled(projected, _scale(layer["cache"])), about), position)
    query = _heads(scaled(projected, _scale(layer["query"])), about)
    mixed = attend(query, tokens, tokens, position, _scale(layer["scores"]), tables["weights"])
    x = saturate(x + _dense(mixed.reshape(len(x), -1), layer["output"]), RESIDUAL_BITS)
    z = _normed(about, x, layer["ista_norm"], tables)
    moved = _dense(z, layer["dictionary"])
    if about.skip:
        moved = moved + _moved(z, about.normed["ista"][number], about.residual)
    return saturate(jnp.maximum(moved, 0), RESIDUAL_BITS), (tokens,)


def _igpt_block(about, number, layer, tables, x, cache, position):
    """As `models.gpt.IGPTBlock.decode`."""
    normed = _normed(about, x, layer["attention_norm"], tables)
    query = _heads(_dense(normed, layer["query"]), about)
    keys, values = (
        _kept(old, _heads(_dense(normed, layer[name]), about), position)
        for name, old in zip(("key", "value"), cache, strict=True)
    )
    mixed = attend(query, keys, values, position, _scale(layer["scores"]), tables["weights"])
    x = saturate(x + _dense(mixed.reshape(len(x), -1), layer["attention_output"]), RESIDUAL_BITS)
    hidden = saturate(
        _dense(_normed(about, x, layer["mlp_norm"], tables), layer["mlp_in"]), integers.FACTOR_BITS
    )
    half = integers.SIGMOID_LENGTH // 2
    place = _moved(hidden, about.hidden[number], integers.STEPS.bit_length() - 1)
    gate = tables["sigmoid"][jnp.clip(place, -half, half - 1) + half].astype(jnp.int32)
    active = shifted(hidden * gate, jnp.int32(integers.WEIGHT_BITS))
    return saturate(x + _dense(active, layer["mlp_out"]), RESIDUAL_BITS), (keys, values)


def _normed(about: Description, x: jax.Array, norm: dict[str, Any], tables: dict[str, Any]) -> jax.Array:
    centred = about.family == "crate_gpt"
    out = scaled(integers.unit(x, tables["roots"], norm["eps"], centred=centred), _scale(norm))
    return saturate(out + norm["bias"], integers.FACTOR_BITS)


def _dense(x: jax.Array, dense: dict[str, Any]) -> jax.Array:
    return scaled(product(x, dense["kernel"]), _scale(dense)) + dense["bias"]


def _scale(values: dict[str, Any]) -> Scale:
    return Scale(values["multiplier"].astype(jnp.int32), values["shift"].astype(jnp.int32))


def _moved(x: jax.Array, found: int, wanted: int) -> jax.Array:
    """Fixed-point numbers with another number of bits after the point."""
    return shifted(x, jnp.int32(found - wanted))


def _kept(cache: jax.Array, token: jax.Array, position: jax.Array) -> jax.Array:
    """The cache `[h, n, p, b]` with a token `[b, h, p]`, cut to a byte, at a position."""
    byte = jnp.clip(token, -127, 127).astype(jnp.int8)
    return jax.lax.dynamic_update_index_in_dim(cache, jnp.transpose(byte, (1, 2, 0)), position, axis=1)


def _heads(x: jax.Array, about: Description) -> jax.Array:
    return x.reshape(len(x), about.heads, about.head_dim)


def save(description: Description, params: dict[str, Any]) -> bytes:
    """The file of a portable model."""
    about = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(description)}
    text = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves
    }
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **{DESCRIPTION: text}, **arrays)
    return file.getvalue()


def load(data: bytes, name: str = "the model") -> Portable:
    """The model that a file holds.

    Raises:
      InputError: a file that is damaged, or no portable model, or one of a newer version.
    """
    wrong = InputError(
        f"--model: {name} is no portable model; accepted: a file that `compress quantise` wrote"
    )
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        about = json.loads(arrays.pop(DESCRIPTION).tobytes())
        if about.pop("format") != FORMAT:
            raise wrong
        version = about.pop("version")
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error):
        raise wrong from None
    if version != VERSION:
        raise InputError(
            f"--model: {name} has version {version}; accepted: {VERSION}, the one that this crate_jax knows"
        )
    about["normed"] = {key: tuple(value) for key, value in about["normed"].items()}
    description = Description(**{**about, "hidden": tuple(about["hidden"])})
    return Portable(description, _nested(arrays, description.depth), hashlib.sha256(data).digest())


def _nested(arrays: dict[str, np.ndarray], depth: int) -> dict[str, Any]:
    """Dictionaries of dictionaries from names with slashes; `blocks` is a list."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = array
    return {**tree, "blocks": [tree["blocks"][str(number)] for number in range(depth)]}
