"""The released formats: which family a file is of, and its configuration, from names and shapes alone."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from crate_jax import InputError, models
from crate_jax.models.crate import SIZES as CRATE_SIZES
from crate_jax.models.crate_alpha import SIZES as ALPHA_SIZES
from crate_jax.models.gpt import SIZES as GPT_SIZES
from crate_jax.models.vit import SIZES as VIT_SIZES
from crate_jax.settings import one_of
from crate_jax.weights import tables
from crate_jax.weights.stored import Stored

Arrays = Mapping[str, Stored]


class ReleasedFormat(NamedTuple):
    """A released format.

    Attributes:
      what: it is, for people.
      table: its arrays and ours.
      config: the configuration, from the arrays and the number of heads.
      heads: the number of heads, from the arrays; or the widths that it must divide, where they do not tell.
      constants: arrays that files hold beside the parameters and that say nothing, a pattern.
    """

    what: str
    table: list[tables.Entry]
    config: Callable[[Arrays, int], Any]
    heads: Callable[[Arrays], int | str]
    constants: str | None = None


def recognise(arrays: Arrays, family: str | None = None) -> str:
    """The family that the names are of; the given one, unless they are those of another.

    Raises:
      InputError: none, two, or another than the given one.
    """
    scores = {name: len(_names(name) & arrays.keys()) / len(_names(name)) for name in FAMILIES}
    # Of formats that share their names the one with more of its own rows counts.
    best = max(scores, key=lambda name: (scores[name], len(FAMILIES[name].table)))
    whole = [name for name in scores if scores[name] == 1 and not _names(name) <= _names(best)]
    if whole:
        raise InputError(f"checkpoint: holds the names of two families, {best} and {whole[0]}; accepted: one")
    if family is not None and (scores[family] >= 0.5 or scores[best] < 0.5):
        return family
    if family is not None:
        raise InputError(f"family: found {family}; accepted: {best}, as the names in the checkpoint say")
    if scores[best] < 0.5:
        raise InputError(
            f"checkpoint: its names are of no family that is known; found {some(arrays)}; accepted: {', '.join(FAMILIES)}"
        )
    return best


def _names(family: str) -> set[str]:
    """The names of a family's arrays, those of layers in the first one."""
    return {name.format(layer=0) for entry in FAMILIES[family].table for name in entry.names}


def configure(family: str, arrays: Arrays, heads: int | None, *, ask: bool = True) -> tuple[Any, int | str]:
    """The configuration of the model that the arrays are of, and its number of heads.

    Args:
      family: a key of FAMILIES.
      arrays: under the released names.
      heads: the number of heads; None: found out.
      ask: raise where it cannot be found out; else the configuration has one head, and what there can be is returned.

    Raises:
      InputError: arrays that are not there or have another number of axes, or heads that they do not tell or that do not
        fit.
    """
    one_of("family", family, FAMILIES)
    if heads is not None and heads < 1:
        raise InputError(f"heads: found {heads}; accepted: 1 or more")
    released = FAMILIES[family]
    try:
        told = released.heads(arrays)
        if heads is None and isinstance(told, str):
            if not ask:
                return released.config(arrays, 1), told
            raise InputError(f"heads: the file does not tell; give --heads=N, {told}")
        if heads not in (None, told) and family in TELLING:
            raise InputError(f"heads: found {heads}; accepted: {told}, as the shapes say")
        number = heads if heads is not None else int(told)
        return released.config(arrays, number), number
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{family} checkpoint: no entry {error}; found {some(arrays)}") from None
    except (ValueError, IndexError):  # An array of another rank, where its shape says what the model is.
        found = [f"{name} {array.shape}" for name, array in arrays.items()]
        raise InputError(
            f"{family} checkpoint does not fit: shapes of other ranks; found {some(found)}"
        ) from None


def some(names: Any) -> str:
    """The first few names, for people."""
    names = list(names)
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _heads(width: int, published: set[int]) -> int | str:
    """The heads of the published size that the shapes are of; else which ones there can be, in words."""
    if len(published) == 1:
        return published.pop()
    usual = [n for n in range(width, 0, -1) if width % n == 0 and 8 <= width // n <= 128] or [1]
    named = ", ".join(f"{n} (of {width // n} features)" for n in usual[-8:])
    return f"which divides {width}: {named}"


def _divided(heads: int, width: int, what: str) -> int:
    if width % heads:
        raise InputError(f"heads: found {heads}; accepted: a divisor of {width}, the width of {what}")
    return width // heads


def _depth(arrays: Arrays, pattern: str) -> int:
    return len({match[1] for name in arrays if (match := re.match(pattern, name))})


def _square_images(tokens: int, patch: int, channels: int) -> dict[str, Any]:
    """Released models see square images: the grid is that of the square root."""
    if tokens < 1 or math.isqrt(tokens) ** 2 != tokens:
        raise InputError(
            f"checkpoint: found positions of {tokens} patches; accepted: a square number of them"
        )
    return {"image_size": math.isqrt(tokens) * patch, "patch_size": patch, "channels": channels}


def _crate_heads(qkv: str, layers: str) -> Callable[[Arrays], int | str]:
    def heads(arrays: Arrays) -> int | str:
        inner, dim = arrays[qkv].shape
        shape = (dim, inner, _depth(arrays, layers))
        return _heads(inner, {h for d, h, p, n in CRATE_SIZES.values() if (d, h * p, n) == shape})

    return heads


def _width_heads(
    name: str, axis: int, layers: str, sizes: Mapping[str, Any]
) -> Callable[[Arrays], int | str]:
    """Where heads divide the model's width: `sizes` has rows of width, depth and heads."""

    def heads(arrays: Arrays) -> int | str:
        shape = (arrays[name].shape[axis], _depth(arrays, layers))
        return _heads(shape[0], {row[2] for row in sizes.values() if row[:2] == shape})

    return heads


CRATE_LAYERS, BLOCKS, ALPHA_LAYERS = (
    r"transformer\.layers\.(\d+)\.",
    r"(?:backbone\.)?blocks\.(\d+)\.",
    r"Transformer/encoderblock_(\d+)/",
)


def _crate_config(arrays: Arrays, heads: int) -> models.CRATEConfig:
    dim, patch_dim = arrays["to_patch_embedding.2.weight"].shape
    patch, channels = tables.patch_shape(patch_dim)
    inner = arrays["transformer.layers.0.0.fn.qkv.weight"].shape[0]
    return models.CRATEConfig(
        **_square_images(arrays["pos_embedding"].shape[1] - 1, patch, channels),
        num_classes=arrays["mlp_head.1.weight"].shape[0],
        dim=dim,
        depth=_depth(arrays, CRATE_LAYERS),
        heads=heads,
        head_dim=_divided(heads, inner, "qkv"),
    )


def _crate_alpha_config(arrays: Arrays, heads: int) -> models.CRATEAlphaConfig:
    dim, channels, patch, _ = arrays["conv1.weight"].shape
    return _alpha(
        arrays,
        heads,
        images=_square_images(arrays["pos_embedding"].shape[1] - 1, patch, channels),
        num_classes=arrays["mlp_head.1.weight"].shape[0],
        dim=dim,
        depth=_depth(arrays, CRATE_LAYERS),
        dictionary="transformer.layers.0.1.fn.D",
    )


def _crate_alpha_npz_config(arrays: Arrays, heads: int) -> models.CRATEAlphaConfig:
    patch, _, channels, dim = arrays["embedding/kernel"].shape
    return _alpha(
        arrays,
        heads,
        images=_square_images(arrays["pos_embedding"].shape[1] - 1, patch, channels),
        num_classes=arrays["head/kernel"].shape[1],
        dim=dim,
        depth=_depth(arrays, ALPHA_LAYERS),
        dictionary="Transformer/encoderblock_0/OvercompleteISTABlock_0/D",
    )


def _alpha(arrays: Arrays, heads, *, images, num_classes, dim, depth, dictionary) -> models.CRATEAlphaConfig:
    _divided(heads, dim, "the model")
    overcomplete = arrays[dictionary].shape[1] // dim
    return models.CRATEAlphaConfig(
        **images, num_classes=num_classes, dim=dim, depth=depth, heads=heads, overcomplete=overcomplete
    )


def _vit_config(arrays: Arrays, heads: int, prefix: str = "") -> models.ViTConfig:
    dim, channels, patch, _ = arrays[f"{prefix}patch_embed.proj.weight"].shape
    _divided(heads, dim, "the model")
    head: dict[str, Any] = {} if prefix else {"num_classes": arrays["head.weight"].shape[0]}
    return models.ViTConfig(
        **_square_images(arrays[f"{prefix}pos_embed"].shape[1] - 1, patch, channels),
        dim=dim,
        depth=_depth(arrays, BLOCKS),
        heads=heads,
        mlp_ratio=arrays[f"{prefix}blocks.0.mlp.fc1.weight"].shape[0] / dim,
        **head,
    )


def _simdino_config(arrays: Arrays, heads: int) -> models.ViTConfig:
    features, hidden = arrays["head.mlp.4.weight"].shape
    config = _vit_config(arrays, heads, "backbone.")
    return config.__class__(**{**vars(config), "num_classes": features, "head_hidden": hidden})


def _crate_mae_config(arrays: Arrays, heads: int) -> models.CRATEMAEConfig:
    dim, channels, patch, _ = arrays["patch_embed.proj.weight"].shape
    inner = arrays["blocks.0.layers.0.0.fn.qkv.weight"].shape[0]
    return models.CRATEMAEConfig(
        **_square_images(arrays["pos_embed"].shape[1] - 1, patch, channels),
        dim=dim,
        depth=_depth(arrays, BLOCKS),
        heads=heads,
        head_dim=_divided(heads, inner, "qkv"),
    )


def _igpt_hf_config(arrays: Arrays, heads: int) -> models.IGPTConfig:
    positions, dim = arrays["transformer.wpe.weight"].shape
    _divided(heads, dim, "the model")
    return models.IGPTConfig(
        vocab_size=arrays["lm_head.weight"].shape[0],
        num_positions=positions,
        dim=dim,
        depth=_depth(arrays, r"transformer\.h\.(\d+)\."),
        heads=heads,
        use_bias=True,
    )


def _igpt_openai_config(arrays: Arrays, heads: int) -> models.IGPTConfig:
    positions, dim = arrays["model/wpe"].shape
    return models.IGPTConfig(
        vocab_size=arrays["model/wte"].shape[0],
        num_positions=positions,
        dim=dim,
        depth=_depth(arrays, r"model/h(\d+)/"),
        heads=heads,
        causal="model/sos" in arrays,
    )


# Formats whose shapes say how many heads there are.
TELLING = ("crate_alpha_npz", "igpt_openai", "igpt_openai_bert")

FAMILIES = {
    "crate": ReleasedFormat(
        "CRATE, PyTorch (Ma-Lab-Berkeley/CRATE)",
        tables.CRATE,
        _crate_config,
        _crate_heads("transformer.layers.0.0.fn.qkv.weight", CRATE_LAYERS),
    ),
    "crate_alpha": ReleasedFormat(
        "CRATE-α, PyTorch (UCSC-VLAA/CRATE-alpha)",
        tables.CRATE_ALPHA,
        _crate_alpha_config,
        _width_heads("conv1.weight", 0, CRATE_LAYERS, ALPHA_SIZES),
    ),
    "crate_alpha_npz": ReleasedFormat(
        "CRATE-α, JAX (UCSC-VLAA/CRATE-alpha)",
        tables.CRATE_ALPHA_NPZ,
        _crate_alpha_npz_config,
        lambda arrays: arrays[
            "Transformer/encoderblock_0/MultiHeadDotProductSubspaceAttention_0/proj/kernel"
        ].shape[1],
    ),
    "crate_mae": ReleasedFormat(
        "CRATE-MAE, PyTorch (Ma-Lab-Berkeley/CRATE)",
        tables.CRATE_MAE,
        _crate_mae_config,
        _crate_heads("blocks.0.layers.0.0.fn.qkv.weight", BLOCKS),
    ),
    "igpt_hf": ReleasedFormat(
        "ImageGPT, PyTorch (Hugging Face Transformers)",
        tables.IGPT_HF,
        _igpt_hf_config,
        _width_heads("transformer.wpe.weight", 1, r"transformer\.h\.(\d+)\.", GPT_SIZES),
        # The causal mask and the value under it, which Transformers saved until 2023.
        constants=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",
    ),
    "igpt_openai": ReleasedFormat(
        "iGPT, TensorFlow (openai/image-gpt)",
        tables.IGPT_OPENAI,
        _igpt_openai_config,
        lambda arrays: arrays["model/h0/attn/q_proj"].shape[0],
    ),
    "igpt_openai_bert": ReleasedFormat(
        "iGPT trained on masked pixels, TensorFlow (openai/image-gpt)",
        tables.IGPT_OPENAI_BERT,
        _igpt_openai_config,
        lambda arrays: arrays["model/h0/attn/q_proj"].shape[0],
    ),
    "simdino": ReleasedFormat(
        "SimDINO, PyTorch (RobinWu218/SimDINO, v1)",
        tables.SIMDINO,
        _simdino_config,
        _width_heads("backbone.patch_embed.proj.weight", 0, BLOCKS, VIT_SIZES),
    ),
    "vit_timm": ReleasedFormat(
        "ViT, PyTorch (timm, DeiT)",
        tables.VIT_TIMM,
        _vit_config,
        _width_heads("patch_embed.proj.weight", 0, BLOCKS, VIT_SIZES),
    ),
}
