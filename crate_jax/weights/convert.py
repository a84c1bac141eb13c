"""Reading and writing checkpoints by the tables."""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from crate_jax import InputError, models
from crate_jax.settings import one_of
from crate_jax.weights import tables

# Names that wrappers put in front of every parameter, and keys under which trainers store the weights.
PREFIXES = ("module.", "_orig_mod.", "params/")
CONTAINERS = ("state_dict", "model", "model_state_dict")
# What trainers that save flat files keep beside the weights.
TRAINER_STATE = ("opt/", "chrono/")


class ReleasedFormat(NamedTuple):
    """A released format: its table and how the configuration follows from the shapes."""

    table: list[tables.Entry]
    config: Any  # (mapping of arrays, heads) -> model configuration


def _crate_config(arrays: Mapping[str, np.ndarray], heads: int) -> models.CRATEConfig:
    dim, patch_dim = arrays["to_patch_embedding.2.weight"].shape
    patch, channels = tables.patch_shape(patch_dim)
    inner = arrays["transformer.layers.0.0.fn.qkv.weight"].shape[0]
    _check_heads(heads, inner, "qkv")
    return models.CRATEConfig(
        **_square_images(arrays["pos_embedding"].shape[1] - 1, patch, channels),
        num_classes=arrays["mlp_head.1.weight"].shape[0],
        dim=dim,
        depth=_depth(arrays, r"transformer\.layers\.(\d+)\."),
        heads=heads,
        head_dim=inner // heads,
    )


def _crate_alpha_config(arrays: Mapping[str, np.ndarray], heads: int) -> models.CRATEAlphaConfig:
    dim, channels, patch, _ = arrays["conv1.weight"].shape
    return _alpha(
        arrays,
        heads,
        images=_square_images(arrays["pos_embedding"].shape[1] - 1, patch, channels),
        num_classes=arrays["mlp_head.1.weight"].shape[0],
        dim=dim,
        depth=_depth(arrays, r"transformer\.layers\.(\d+)\."),
        dictionary="transformer.layers.0.1.fn.D",
    )


def _crate_alpha_npz_config(arrays: Mapping[str, np.ndarray], heads: int) -> models.CRATEAlphaConfig:
    patch, _, channels, dim = arrays["embedding/kernel"].shape
    return _alpha(
        arrays,
        heads,
        images=_square_images(arrays["pos_embedding"].shape[1] - 1, patch, channels),
        num_classes=arrays["head/kernel"].shape[1],
        dim=dim,
        depth=_depth(arrays, r"Transformer/encoderblock_(\d+)/"),
        dictionary="Transformer/encoderblock_0/OvercompleteISTABlock_0/D",
    )


def _alpha(arrays, heads: int, *, images, num_classes, dim, depth, dictionary) -> models.CRATEAlphaConfig:
    _check_heads(heads, dim, "the model")
    overcomplete = arrays[dictionary].shape[1] // dim
    return models.CRATEAlphaConfig(
        **images, num_classes=num_classes, dim=dim, depth=depth, heads=heads, overcomplete=overcomplete
    )


def _vit_config(arrays: Mapping[str, np.ndarray], heads: int) -> models.ViTConfig:
    dim, channels, patch, _ = arrays["patch_embed.proj.weight"].shape
    _check_heads(heads, dim, "the model")
    return models.ViTConfig(
        **_square_images(arrays["pos_embed"].shape[1] - 1, patch, channels),
        num_classes=arrays["head.weight"].shape[0],
        dim=dim,
        depth=_depth(arrays, r"blocks\.(\d+)\."),
        heads=heads,
        mlp_ratio=arrays["blocks.0.mlp.fc1.weight"].shape[0] / dim,
    )


def _square_images(tokens: int, patch: int, channels: int) -> dict[str, Any]:
    """Released models see square images: the grid is that of the square root."""
    if math.isqrt(tokens) ** 2 != tokens:
        raise InputError(
            f"checkpoint: found positions of {tokens} patches; accepted: a square number of them"
        )
    return {"image_size": math.isqrt(tokens) * patch, "patch_size": patch, "channels": channels}


def _depth(arrays: Mapping[str, np.ndarray], pattern: str) -> int:
    return len({match[1] for name in arrays if (match := re.match(pattern, name))})


def _check_heads(heads: int, width: int, what: str) -> None:
    if width % heads:
        raise InputError(f"heads: found {heads}; accepted: a divisor of {width}, the width of {what}")


def _crate_mae_config(arrays: Mapping[str, np.ndarray], heads: int) -> models.CRATEMAEConfig:
    dim, channels, patch, _ = arrays["patch_embed.proj.weight"].shape
    inner = arrays["blocks.0.layers.0.0.fn.qkv.weight"].shape[0]
    _check_heads(heads, inner, "qkv")
    return models.CRATEMAEConfig(
        **_square_images(arrays["pos_embed"].shape[1] - 1, patch, channels),
        dim=dim,
        depth=_depth(arrays, r"blocks\.(\d+)\."),
        heads=heads,
        head_dim=inner // heads,
    )


def _igpt_config(arrays: Mapping[str, np.ndarray], heads: int) -> models.IGPTConfig:
    positions, dim = arrays["transformer.wpe.weight"].shape
    _check_heads(heads, dim, "the model")
    return models.IGPTConfig(
        vocab_size=arrays["lm_head.weight"].shape[0],
        num_positions=positions,
        dim=dim,
        depth=_depth(arrays, r"transformer\.h\.(\d+)\."),
        heads=heads,
        use_bias=True,
    )


FAMILIES = {
    "crate": ReleasedFormat(tables.CRATE, _crate_config),
    "crate_alpha": ReleasedFormat(tables.CRATE_ALPHA, _crate_alpha_config),
    "crate_alpha_npz": ReleasedFormat(tables.CRATE_ALPHA_NPZ, _crate_alpha_npz_config),
    "crate_mae": ReleasedFormat(tables.CRATE_MAE, _crate_mae_config),
    "igpt_hf": ReleasedFormat(tables.IGPT_HF, _igpt_config),
    "vit_timm": ReleasedFormat(tables.VIT_TIMM, _vit_config),
}


def load(source: Mapping[str, Any] | str | Path, family: str, *, heads: int) -> tuple[Any, models.Params]:
    """A released checkpoint as `(model_config, params)`.

    Args:
      source: a mapping from released names to arrays, or a .npz, .safetensors or .pth file. A .pth file is opened
        with PyTorch's weights-only loader; it never runs code from the file.
      family: one of FAMILIES.
      heads: the number of heads; the weights do not tell.
    Raises:
      InputError: an unknown family or file, or names and shapes that are not those of the family; all missing, extra and
        misshapen entries are named in one message.
    """
    one_of("family", family, FAMILIES)
    arrays = _read(source) if isinstance(source, str | Path) else dict(source)
    arrays = {
        _strip(name): np.asarray(value, np.float32)
        for name, value in arrays.items()
        if not name.startswith(TRAINER_STATE)
    }
    if heads < 1:
        raise InputError(f"heads: found {heads}; accepted: 1 or more")
    table = FAMILIES[family].table
    try:
        config = FAMILIES[family].config(arrays, heads)
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{family} checkpoint: no entry {error}; found {_some(arrays)}") from None
    except (ValueError, IndexError):  # An array of another rank, where its shape says what the model is.
        found = [f"{name} {array.shape}" for name, array in arrays.items()]
        raise InputError(
            f"{family} checkpoint does not fit: shapes of other ranks; found {_some(found)}"
        ) from None
    abstract = _flat(models.create(config).abstract_params)
    flat, problems, used = {}, [], set()
    for entry in table:
        names = _names(entry, config.depth)
        used.update(names)
        missing = [name for name in names if name not in arrays]
        if missing:
            problems += [f"missing {name}" for name in missing]
            continue
        want = abstract[entry.ours].shape
        try:
            parts = [entry.load(arrays[name], heads) for name in names]
            value = np.stack(parts) if "{layer}" in entry.released else parts[0]
        except (ValueError, IndexError):
            value = None
        if value is None or value.shape != want:
            shapes = sorted({arrays[name].shape for name in names})
            problems.append(f"misshapen {entry.released} {shapes}, which must give {entry.ours} {want}")
            continue
        flat[entry.ours] = value
    problems += [f"extra {name}" for name in arrays if name not in used]
    if problems:
        raise InputError(f"{family} checkpoint does not fit: " + "; ".join(problems))
    return config, _nested(flat)


def export(params: models.Params, family: str) -> dict[str, np.ndarray]:
    """Our parameters under the released names; the inverse of `load`.

    Raises:
      InputError: an unknown family, or parameters that the released form has no place for or that it needs.
    """
    one_of("family", family, FAMILIES)
    flat, table = _flat(params), FAMILIES[family].table
    ours = [entry.ours for entry in table]
    problems = [f"no place for {name}" for name in flat if name not in ours]
    problems += [f"no {name} here, which it needs" for name in ours if name not in flat]
    if problems:
        raise InputError(f"the released form of {family} does not fit: " + "; ".join(problems))
    out = {}
    for entry in table:
        value = np.asarray(flat[entry.ours])
        if "{layer}" in entry.released:
            for layer, part in enumerate(value):
                out[entry.released.format(layer=layer)] = np.ascontiguousarray(entry.export(part))
        else:
            out[entry.released] = np.ascontiguousarray(entry.export(value))
    return out


def _read(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint: no file {path}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        if path.suffix in (".pth", ".pt", ".bin"):
            import torch

            loaded = torch.load(path, map_location="cpu", weights_only=True)
            for name in CONTAINERS:
                loaded = loaded.get(name, loaded) if isinstance(loaded, dict) else loaded
            return {name: value.float().numpy() for name, value in loaded.items()}
    except ImportError as error:
        raise InputError(f"checkpoint: reading {path.suffix} needs the package {error.name}") from None
    except Exception as error:
        # Every reader has its own exceptions for a truncated or foreign file; the user needs one line.
        raise InputError(f"checkpoint: {path} cannot be read: {str(error).splitlines()[0]}") from None
    raise InputError(f"checkpoint: found {path.suffix!r}; accepted: .npz, .safetensors, .pth")


def _strip(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _names(entry: tables.Entry, depth: int) -> list[str]:
    if "{layer}" not in entry.released:
        return [entry.released]
    return [entry.released.format(layer=layer) for layer in range(depth)]


def _some(arrays: Collection[str]) -> str:
    return ", ".join(list(arrays)[:5]) + (", …" if len(arrays) > 5 else "")


def _flat(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = out
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return out
