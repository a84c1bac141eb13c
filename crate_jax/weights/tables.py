"""What each released parameter is called here, and how its axes are arranged. `{layer}` stands for a layer's number."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Entry(NamedTuple):
    """One row: the released name, our path, and the two reshapings (h is the number of heads)."""

    released: str
    ours: str
    load: Callable[[np.ndarray, int], np.ndarray] = lambda w, h: w
    export: Callable[[np.ndarray], np.ndarray] = lambda w: w


def _linear(released: str, ours: str) -> list[Entry]:
    """torch.nn.Linear stores `[outputs, inputs]`."""
    return [
        Entry(f"{released}.weight", f"{ours}/kernel", lambda w, h: w.T, lambda w: w.T),
        Entry(f"{released}.bias", f"{ours}/bias"),
    ]


def _norm(released: str, ours: str) -> list[Entry]:
    return [Entry(f"{released}.weight", f"{ours}/scale"), Entry(f"{released}.bias", f"{ours}/bias")]


CRATE = [
    Entry("cls_token", "class_token", lambda w, h: w[0, 0], lambda w: w[None, None]),
    Entry("pos_embedding", "position_embedding", lambda w, h: w[0], lambda w: w[None]),
    *_norm("to_patch_embedding.1", "patch_embed/norm_in"),
    *_linear("to_patch_embedding.2", "patch_embed/projection"),
    *_norm("to_patch_embedding.3", "patch_embed/norm_out"),
    *_norm("transformer.layers.{layer}.0.norm", "blocks/blocks/mssa_norm"),
    Entry(  # [h·p, d] ↔ [h, d, p]
        "transformer.layers.{layer}.0.fn.qkv.weight",
        "blocks/blocks/mssa/bases",
        lambda w, h: w.reshape(h, -1, w.shape[1]).transpose(0, 2, 1),
        lambda w: w.transpose(0, 2, 1).reshape(-1, w.shape[1]),
    ),
    Entry(  # [d, h·p] ↔ [h, p, d]
        "transformer.layers.{layer}.0.fn.to_out.0.weight",
        "blocks/blocks/mssa/output",
        lambda w, h: w.T.reshape(h, -1, w.shape[0]),
        lambda w: w.reshape(-1, w.shape[2]).T,
    ),
    Entry("transformer.layers.{layer}.0.fn.to_out.0.bias", "blocks/blocks/mssa/bias"),
    *_norm("transformer.layers.{layer}.1.norm", "blocks/blocks/ista_norm"),
    Entry("transformer.layers.{layer}.1.fn.weight", "blocks/blocks/ista/dictionary"),
    *_norm("mlp_head.0", "head_norm"),
    *_linear("mlp_head.1", "head"),
]
