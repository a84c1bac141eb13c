"""Reading and writing checkpoints by the tables."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from crate_jax import InputError, models
from crate_jax.settings import one_of
from crate_jax.weights import families, files, names, tables
from crate_jax.weights.families import FAMILIES, some
from crate_jax.weights.stored import Stored

# What later models add, by the names of its parameters: our models of these families have none of it.
ADDED = {
    r"\.ls[12]\.gamma$|\.gamma_[12]$": "layer scale",
    r"\.attn\.[qk]_norm\.": "normed queries and keys",
    r"^(dist_token|head_dist\.)": "DeiT's distillation token",
    r"(^|\.)reg_token|register_tokens": "register tokens",
    r"(^|\.)fc_norm\.": "a norm of the mean of the tokens in place of the class token",
    r"(^|\.)norm_pre\.": "a norm before the blocks",
    r"\.mlp\.w12\.": "a SwiGLU MLP",
    r"running_(mean|var)$": "batch norm",
    r"^cls_attn_blocks\.|pos_embeder\.": "the class attention and the Fourier positions of the released ToST",
}
# Fields of a configuration that parameters do not depend on, nor what a released model computes from them.
FREE = (
    "scan",
    "remat",
    "dtype",
    "attention_kernel",
    "image_width",
    "mssa_std",
    "mask_ratio",
    "layer_scale",
    "dropout",
)
FLOAT_KINDS = "fV"  # bfloat16 is of kind V.


@dataclasses.dataclass(frozen=True)
class Released:
    """A released checkpoint of which names, shapes and types are known, and no value has been read.

    Attributes:
      family: a key of FAMILIES.
      config: of the model.
      heads: its number of heads; what it can be, in words, where the file does not tell and nobody was asked.
      arrays: by released name.
      notes: what is unusual, in sentences.
      problems: why it does not fit the family; nothing where it does.
    """

    family: str
    config: Any
    heads: int | str
    arrays: dict[str, Stored]
    notes: list[str]
    problems: list[str]

    def computed_as(self, config: Any) -> "Released":
        """The same with another configuration of the model, for what the arrays do not tell."""
        problems = _problems(self.family, config, self.arrays)
        return dataclasses.replace(self, config=config, problems=problems)

    @property
    def num_params(self) -> int:
        """Numbers in the arrays."""
        return sum(int(np.prod(array.shape)) for array in self.arrays.values())

    @property
    def types(self) -> dict[str, int]:
        """How many arrays there are of each type."""
        found = [str(array.dtype) for array in self.arrays.values()]
        return {name: found.count(name) for name in sorted(set(found))}

    def params(self, place: Callable[[Any], Any] | None = None) -> models.Params:
        """The parameters, float32. One array at a time is taken from the file, or of a stack over the layers one layer.

        Args:
          place: given the abstract parameters, a tree of shardings: each device then gets its part and no more is kept.
            None: NumPy arrays.
        Raises:
          InputError: what does not fit, all of it in one message, or a value that is not finite.
        """
        if self.problems:
            raise InputError(f"{self.family} checkpoint does not fit: {'; '.join(self.problems)}")
        abstract = _abstract(self.config)
        shardings = {} if place is None else flat(place(abstract))
        shapes = flat(abstract)
        built: dict[str, Any] = {}
        for entry in FAMILIES[self.family].table:
            build = _Builder(
                entry, self.arrays, self.config.heads, self.config.depth, shapes[entry.ours].shape
            )
            sharding = shardings.get(entry.ours)
            if sharding is None:
                built[entry.ours] = build(None)
            else:
                built[entry.ours] = _placed(build, sharding)
        return _nested(built)


def inspect(
    source: Mapping[str, Any] | str | Path,
    family: str | None = None,
    *,
    heads: int | None = None,
    part: str | None = None,
    ask: bool = True,
) -> Released:
    """What a released checkpoint is, from its names and shapes; no value is read.

    Args:
      source: a mapping from released names to arrays, or a file, see `files.open_file`.
      family: a key of FAMILIES; None: found out.
      heads: the number of heads; None: found out, where the shapes or the published sizes tell.
      part: the key of the weights, where a file holds several.
      ask: raise where the number of heads cannot be found out; else it is left open.
    Raises:
      InputError: a file that cannot be read, or whose names and shapes are those of no family.
    """
    if family is not None:
        one_of("family", family, FAMILIES)
    content = files.open_file(source) if isinstance(source, str | Path) else files.in_memory(source)
    arrays, notes = names.find(content, part)
    family = families.recognise(arrays, family)
    arrays, constants = _without_constants(arrays, FAMILIES[family].constants)
    if constants:
        notes.append(f"left out: {constants} constant arrays, such as the mask of attention")
    config, found = families.configure(family, arrays, heads, ask=ask)
    notes += _casts(arrays)
    return Released(family, config, found, arrays, notes, _problems(family, config, arrays))


def load(
    source: Mapping[str, Any] | str | Path, family: str | None = None, *, heads: int | None = None
) -> tuple[Any, models.Params]:
    """A released checkpoint as `(model_config, params)`, the parameters being float32 NumPy arrays.

    Args:
      source: a mapping from released names to arrays, or a file: .safetensors (one or an index of several), .npz, a file of
        PyTorch, the index of a TensorFlow checkpoint. No code in it is ever run.
      family: one of FAMILIES; left out: found out from the names.
      heads: the number of heads; left out: found out, where the shapes or the published sizes tell.
    Raises:
      InputError: an unknown family or file, or names and shapes that are not those of the family; all missing, extra and
        misshapen entries are named in one message.
    """
    released = inspect(source, family, heads=heads)
    return released.config, released.params()


def export(params: models.Params, family: str, config: Any = None) -> dict[str, np.ndarray]:
    """Our parameters under the released names; the inverse of `load`.

    Args:
      params: of a model.
      family: one of FAMILIES.
      config: of the model; None: it is not looked at.
    Raises:
      InputError: an unknown family, parameters that the released form has no place for or that it needs, or a model whose
        released form would compute something else from them.
    """
    one_of("family", family, FAMILIES)
    ours, table = flat(params), FAMILIES[family].table
    known = [entry.ours for entry in table]
    problems = [f"no place for {name}" for name in ours if name not in known]
    problems += [f"no {name} here, which it needs" for name in known if name not in ours]
    if problems:
        raise InputError(f"the released form of {family} does not fit: " + "; ".join(problems))
    out: dict[str, np.ndarray] = {}
    for entry in table:
        value = np.asarray(ours[entry.ours])
        for layer, part in enumerate(value) if entry.stacked else [(None, value)]:
            exported = entry.export(part)
            for name, array in zip(
                entry.names, exported if len(entry.names) > 1 else (exported,), strict=True
            ):
                out[name if layer is None else name.format(layer=layer)] = np.ascontiguousarray(array)
    if config is not None:
        _check_form(out, family, config)
    return out


def _check_form(arrays: Mapping[str, np.ndarray], family: str, config: Any) -> None:
    """Raise where the released code would compute something else: it knows the shapes, and what it has as constants."""
    released, _ = families.configure(family, files.in_memory(arrays), config.heads)
    other = [
        f"model.{field.name} is {getattr(config, field.name)!r}, there {getattr(released, field.name, None)!r}"
        for field in dataclasses.fields(config)
        if field.name not in FREE and getattr(config, field.name) != getattr(released, field.name, None)
    ]
    if other:
        raise InputError(f"the released form of {family} computes another model: {'; '.join(other)}")


@dataclasses.dataclass(frozen=True)
class _Builder:
    """Makes a part of one of our arrays from released ones, given its index: a slice for each axis."""

    entry: tables.Entry
    arrays: Mapping[str, Stored]
    heads: int
    depth: int
    shape: tuple[int, ...]

    def __call__(self, index: tuple[slice, ...] | None) -> np.ndarray:
        index = (*(index or ()), *[slice(None)] * (len(self.shape) - len(index or ())))
        if not self.entry.stacked:
            return self._float32(self._one(None)[index])
        layers = range(self.depth)[index[0]]
        first = self._float32(self._one(layers[0])[index[1:]])
        if len(layers) == 1:
            return first[None]
        out = np.empty((len(layers), *first.shape), np.float32)
        out[0] = first
        for place, layer in enumerate(layers[1:], 1):
            out[place] = self._float32(self._one(layer)[index[1:]])
        return out

    def _one(self, layer: int | None) -> np.ndarray:
        named = (name.format(layer=layer) for name in self.entry.names)
        return self.entry.load(*(self.arrays[name].read() for name in named), self.heads)

    def _float32(self, part: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            out = np.ascontiguousarray(part, np.float32)
        if not np.isfinite(out).all():
            raise InputError(f"checkpoint: {self.entry.names[0]} holds values that are not finite in float32")
        return out


def _placed(build: _Builder, sharding: jax.sharding.Sharding) -> jax.Array:
    """The array on the devices of this process, of which the host holds one device's part at a time."""
    shards: list[jax.Array] = []
    last, part = None, None
    places = sharding.addressable_devices_indices_map(build.shape)
    for device, index in sorted(places.items(), key=lambda place: str(place[1])):
        if part is None or index != last:
            part = None  # The last one goes before the next one is made.
            last, part = index, build(index)
        # Waited for, because the host's part is kept until it has been copied.
        shards.append(jax.block_until_ready(jax.device_put(part, device)))
    return jax.make_array_from_single_device_arrays(build.shape, sharding, shards)


@functools.lru_cache(8)
def _abstract(config: Any) -> models.Params:
    return models.create(config).abstract_params


def _problems(family: str, config: Any, arrays: Mapping[str, Stored]) -> list[str]:
    """What is missing, misshapen, of the wrong type, or has no place, in words."""
    abstract = flat(_abstract(config))
    missing: list[str] = []
    misshapen: list[str] = []
    used: set[str] = set()
    for entry in FAMILIES[family].table:
        per_layer = [
            tuple(name.format(layer=layer) for name in entry.names)
            for layer in (range(config.depth) if entry.stacked else (None,))
        ]
        used.update(name for one in per_layer for name in one)
        if absent := [name for one in per_layer for name in one if name not in arrays]:
            missing += absent
            continue
        want = abstract[entry.ours].shape
        shapes = {tuple(arrays[name].shape for name in one) for one in per_layer}
        if any(_loaded_shape(entry, one, config.heads) != want[entry.stacked :] for one in shapes):
            found = sorted(shape for one in shapes for shape in one)
            misshapen.append(
                f"misshapen {' and '.join(entry.names)} {found}, which must give {entry.ours} {want}"
            )
    mistyped = [
        name for name, array in arrays.items() if array.dtype.kind not in FLOAT_KINDS and name in used
    ]
    problems = [f"missing {name}" for name in _grouped(missing)] + misshapen
    problems += [f"{name} is {arrays[name].dtype}, not of floating-point numbers" for name in mistyped]
    extra = [name for name in arrays if name not in used]
    return problems + [f"extra {name}{_what(name)}" for name in _grouped(extra)]


def _loaded_shape(entry: tables.Entry, shapes: tuple[tuple[int, ...], ...], heads: int) -> tuple | None:
    """The shape that arrays of these shapes have once arranged as ours; None where that cannot be."""
    try:
        return entry.load(*(np.broadcast_to(np.uint8(0), shape) for shape in shapes), heads).shape
    except (ValueError, IndexError):
        return None


def _grouped(found: list[str]) -> list[str]:
    """Names that differ in a layer's number as one, `blocks.{0,1,2}.ls1.gamma`."""
    groups: dict[str, list[str]] = {}
    for name in found:
        number = re.search(r"(?<=[._/h])\d+(?=[._/])", name)
        key = name if number is None else f"{name[: number.start()]}\0{name[number.end() :]}"
        groups.setdefault(key, []).append("" if number is None else number[0])
    out = [
        key.replace("\0", numbers[0] if len(numbers) == 1 else "{" + ",".join(numbers) + "}")
        for key, numbers in groups.items()
    ]
    return out if len(out) <= 12 else [*out[:12], f"{len(out) - 12} more"]


def _what(name: str) -> str:
    found = next((what for pattern, what in ADDED.items() if re.search(pattern, name)), None)
    return f" ({found}, which our model does not have)" if found else ""


def _without_constants(arrays: dict[str, Stored], pattern: str | None) -> tuple[dict[str, Stored], int]:
    if pattern is None:
        return arrays, 0
    kept = {name: array for name, array in arrays.items() if not re.fullmatch(pattern, name)}
    return kept, len(arrays) - len(kept)


def _casts(arrays: Mapping[str, Stored]) -> list[str]:
    others = [str(array.dtype) for array in arrays.values() if array.dtype != np.float32]
    return [
        f"{others.count(name)} of {len(arrays)} arrays cast from {name} to float32"
        for name in sorted(set(others))
    ]


def flat(tree: Any) -> dict[str, Any]:
    """Path → leaf, the keys of a path joined by slashes."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for path, value in values.items():
        *parents, last = path.split("/")
        node = out
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return out


__all__ = ["FAMILIES", "Released", "export", "flat", "inspect", "load", "some"]
