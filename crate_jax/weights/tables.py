"""What each released parameter is called here, and how its axes are arranged. `{layer}` stands for a layer's number."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Entry(NamedTuple):
    """One row: the released name, our path, and the two reshapings (h is the number of heads). Where several released
    arrays are one of ours, `load` takes them all and `export` returns them all.
    """

    released: str | tuple[str, ...]
    ours: str
    load: Callable[..., np.ndarray] = lambda w, h: w
    export: Callable[[np.ndarray], Any] = lambda w: w

    @property
    def names(self) -> tuple[str, ...]:
        """The released names, perhaps with `{layer}` in them."""
        return (self.released,) if isinstance(self.released, str) else self.released

    @property
    def stacked(self) -> bool:
        """Whether there is one of it in each layer, which ours has in one array."""
        return "{layer}" in self.names[0]


def _linear(released: str, ours: str) -> list[Entry]:
    """torch.nn.Linear stores `[outputs, inputs]`."""
    return [
        Entry(f"{released}.weight", f"{ours}/kernel", lambda w, h: w.T, lambda w: w.T),
        Entry(f"{released}.bias", f"{ours}/bias"),
    ]


def _norm(released: str, ours: str) -> list[Entry]:
    return [Entry(f"{released}.weight", f"{ours}/scale"), Entry(f"{released}.bias", f"{ours}/bias")]


def _output(released: str, ours: str) -> Entry:  # [d, h·p] ↔ [h, p, d]
    return Entry(
        released,
        ours,
        lambda w, h: w.T.reshape(h, -1, w.shape[0]),
        lambda w: w.reshape(-1, w.shape[2]).T,
    )


def _mssa(released: str, ours: str, *, bias: bool = True) -> list[Entry]:
    return [
        Entry(  # [h·p, d] ↔ [h, d, p]
            f"{released}.qkv.weight",
            f"{ours}/bases",
            lambda w, h: w.reshape(h, -1, w.shape[1]).transpose(0, 2, 1),
            lambda w: w.transpose(0, 2, 1).reshape(-1, w.shape[1]),
        ),
        _output(f"{released}.to_out.0.weight", f"{ours}/output"),
        *([Entry(f"{released}.to_out.0.bias", f"{ours}/bias")] if bias else []),
    ]


def patch_shape(length: int) -> tuple[int, int]:
    """Side and channels, 3 or 1, of a patch of so many numbers."""
    channels = 3 if length % 3 == 0 and math.isqrt(length // 3) ** 2 == length // 3 else 1
    return math.isqrt(length // channels), channels


def _convolution_shape(length: int) -> tuple[int, int, int]:
    side, channels = patch_shape(length)
    return side, side, channels


def _patch_convolution(released: str, ours: str) -> list[Entry]:
    """torch.nn.Conv2d over patches stores `[d, c, p, p]`; ours is `[p·p·c, d]`."""
    return [
        Entry(
            f"{released}.weight",
            f"{ours}/kernel",
            lambda w, h: w.transpose(2, 3, 1, 0).reshape(-1, len(w)),
            lambda w: w.reshape(*_convolution_shape(len(w)), -1).transpose(3, 2, 0, 1),
        ),
        Entry(f"{released}.bias", f"{ours}/bias"),
    ]


CRATE = [
    Entry("cls_token", "class_token", lambda w, h: w[0, 0], lambda w: w[None, None]),
    Entry("pos_embedding", "position_embedding", lambda w, h: w[0], lambda w: w[None]),
    *_norm("to_patch_embedding.1", "patch_embed/norm_in"),
    *_linear("to_patch_embedding.2", "patch_embed/projection"),
    *_norm("to_patch_embedding.3", "patch_embed/norm_out"),
    *_norm("transformer.layers.{layer}.0.norm", "blocks/blocks/mssa_norm"),
    *_mssa("transformer.layers.{layer}.0.fn", "blocks/blocks/mssa"),
    *_norm("transformer.layers.{layer}.1.norm", "blocks/blocks/ista_norm"),
    Entry("transformer.layers.{layer}.1.fn.weight", "blocks/blocks/ista/dictionary"),
    *_norm("mlp_head.0", "head_norm"),
    *_linear("mlp_head.1", "head"),
]

CRATE_ALPHA = [
    Entry("cls_token", "class_token", lambda w, h: w[0, 0], lambda w: w[None, None]),
    Entry("pos_embedding", "position_embedding", lambda w, h: w[0], lambda w: w[None]),
    *_patch_convolution("conv1", "patch_embed/projection"),
    *_norm("transformer.layers.{layer}.0.norm", "blocks/blocks/mssa_norm"),
    *_mssa("transformer.layers.{layer}.0.fn", "blocks/blocks/mssa", bias=False),
    *_norm("transformer.layers.{layer}.1.norm", "blocks/blocks/odl_norm"),
    Entry("transformer.layers.{layer}.1.fn.D", "blocks/blocks/odl/dictionary"),
    Entry("transformer.layers.{layer}.1.fn.D1", "blocks/blocks/odl/decoder"),
    *_norm("mlp_head.0", "head_norm"),
    *_linear("mlp_head.1", "head"),
]

# The checkpoints of the training code (flax), whose matrices are inputs × outputs.
_ALPHA_BLOCK = "Transformer/encoderblock_{layer}"
_ALPHA_MSSA = f"{_ALPHA_BLOCK}/MultiHeadDotProductSubspaceAttention_0"
CRATE_ALPHA_NPZ = [
    Entry("cls", "class_token", lambda w, h: w[0, 0], lambda w: w[None, None]),
    Entry("pos_embedding", "position_embedding", lambda w, h: w[0], lambda w: w[None]),
    Entry(  # [p, p, c, d] ↔ [p·p·c, d]
        "embedding/kernel",
        "patch_embed/projection/kernel",
        lambda w, h: w.reshape(-1, w.shape[-1]),
        lambda w: w.reshape(*_convolution_shape(len(w)), -1),
    ),
    Entry("embedding/bias", "patch_embed/projection/bias"),
    Entry(f"{_ALPHA_BLOCK}/LayerNorm_0/scale", "blocks/blocks/mssa_norm/scale"),
    Entry(f"{_ALPHA_BLOCK}/LayerNorm_0/bias", "blocks/blocks/mssa_norm/bias"),
    Entry(  # [d, h, p] ↔ [h, d, p]
        f"{_ALPHA_MSSA}/proj/kernel",
        "blocks/blocks/mssa/bases",
        lambda w, h: w.transpose(1, 0, 2),
        lambda w: w.transpose(1, 0, 2),
    ),
    Entry(f"{_ALPHA_MSSA}/out/kernel", "blocks/blocks/mssa/output"),
    Entry(f"{_ALPHA_BLOCK}/LayerNorm_1/scale", "blocks/blocks/odl_norm/scale"),
    Entry(f"{_ALPHA_BLOCK}/LayerNorm_1/bias", "blocks/blocks/odl_norm/bias"),
    Entry(f"{_ALPHA_BLOCK}/OvercompleteISTABlock_0/D", "blocks/blocks/odl/dictionary"),
    Entry(f"{_ALPHA_BLOCK}/OvercompleteISTABlock_0/D1", "blocks/blocks/odl/decoder"),
    Entry("encoder_norm/scale", "head_norm/scale"),
    Entry("encoder_norm/bias", "head_norm/bias"),
    Entry("head/kernel", "head/kernel"),
    Entry("head/bias", "head/bias"),
]

VIT_TIMM = [
    Entry("cls_token", "class_token", lambda w, h: w[0, 0], lambda w: w[None, None]),
    Entry("pos_embed", "position_embedding", lambda w, h: w[0], lambda w: w[None]),
    *_patch_convolution("patch_embed.proj", "patch_embed/projection"),
    *_norm("blocks.{layer}.norm1", "blocks/blocks/attention_norm"),
    Entry(  # [3·h·p, d] ↔ [d, 3, h, p]
        "blocks.{layer}.attn.qkv.weight",
        "blocks/blocks/qkv/kernel",
        lambda w, h: w.T.reshape(w.shape[1], 3, h, -1),
        lambda w: w.reshape(len(w), -1).T,
    ),
    Entry(
        "blocks.{layer}.attn.qkv.bias",
        "blocks/blocks/qkv/bias",
        lambda w, h: w.reshape(3, h, -1),
        lambda w: w.reshape(-1),
    ),
    _output("blocks.{layer}.attn.proj.weight", "blocks/blocks/attention_output/kernel"),
    Entry("blocks.{layer}.attn.proj.bias", "blocks/blocks/attention_output/bias"),
    *_norm("blocks.{layer}.norm2", "blocks/blocks/mlp_norm"),
    *_linear("blocks.{layer}.mlp.fc1", "blocks/blocks/mlp/mlp_in"),
    *_linear("blocks.{layer}.mlp.fc2", "blocks/blocks/mlp/mlp_out"),
    *_norm("norm", "head_norm"),
    *_linear("head", "head"),
]


CRATE_MAE = [
    Entry("cls_token", "class_token", lambda w, h: w[0, 0], lambda w: w[None, None]),
    Entry("mask_token", "mask_token", lambda w, h: w[0, 0], lambda w: w[None, None]),
    Entry("pos_embed", "position_embedding", lambda w, h: w[0], lambda w: w[None]),
    Entry("decoder_pos_embed", "decoder_position_embedding", lambda w, h: w[0], lambda w: w[None]),
    *_patch_convolution("patch_embed.proj", "patch_projection"),
    *_norm("blocks.{layer}.layers.0.0.norm", "blocks/blocks/mssa_norm"),
    *_mssa("blocks.{layer}.layers.0.0.fn", "blocks/blocks/mssa"),
    *_norm("blocks.{layer}.layers.0.1.norm", "blocks/blocks/ista_norm"),
    Entry("blocks.{layer}.layers.0.1.fn.weight", "blocks/blocks/ista/dictionary"),
    *_norm("norm", "norm"),
    *_linear("decoder_embed", "decoder_projection"),
    *_norm("decoder_blocks.{layer}.layers.0.0.norm", "decoder_blocks/blocks/dictionary_norm"),
    Entry("decoder_blocks.{layer}.layers.0.0.fn.weight", "decoder_blocks/blocks/dictionary"),
    *_norm("decoder_blocks.{layer}.layers.0.1.norm", "decoder_blocks/blocks/mssa_norm"),
    *_mssa("decoder_blocks.{layer}.layers.0.1.fn", "decoder_blocks/blocks/mssa"),
    *_norm("decoder_norm", "decoder_norm"),
    *_linear("decoder_pred", "prediction_head"),
]


def _conv1d(released: str, ours: str) -> list[Entry]:
    """GPT-2's Conv1D stores `[inputs, outputs]`."""
    return [Entry(f"{released}.weight", f"{ours}/kernel"), Entry(f"{released}.bias", f"{ours}/bias")]


# Hugging Face's ImageGPT. The last row of its input table is the start token, as in ours.
IGPT_HF = [
    Entry("transformer.wte.weight", "token_embedding"),
    Entry("transformer.wpe.weight", "position_embedding"),
    Entry("transformer.h.{layer}.ln_1.weight", "blocks/blocks/attention_norm/scale"),
    Entry(  # [d, 3·h·p] ↔ [d, 3, h, p]
        "transformer.h.{layer}.attn.c_attn.weight",
        "blocks/blocks/qkv/kernel",
        lambda w, h: w.reshape(w.shape[0], 3, h, -1),
        lambda w: w.reshape(w.shape[0], -1),
    ),
    Entry(
        "transformer.h.{layer}.attn.c_attn.bias",
        "blocks/blocks/qkv/bias",
        lambda w, h: w.reshape(3, h, -1),
        lambda w: w.reshape(-1),
    ),
    Entry(  # [h·p, d] ↔ [h, p, d]
        "transformer.h.{layer}.attn.c_proj.weight",
        "blocks/blocks/attention_output/kernel",
        lambda w, h: w.reshape(h, -1, w.shape[1]),
        lambda w: w.reshape(-1, w.shape[2]),
    ),
    Entry("transformer.h.{layer}.attn.c_proj.bias", "blocks/blocks/attention_output/bias"),
    Entry("transformer.h.{layer}.ln_2.weight", "blocks/blocks/mlp_norm/scale"),
    *_conv1d("transformer.h.{layer}.mlp.c_fc", "blocks/blocks/mlp_in"),
    *_conv1d("transformer.h.{layer}.mlp.c_proj", "blocks/blocks/mlp_out"),
    Entry("transformer.ln_f.weight", "head_norm/scale"),
    Entry("lm_head.weight", "head/kernel", lambda w, h: w.T, lambda w: w.T),
]


# The variables of OpenAI's code, in TensorFlow. Each of q, k, v is `[h, p, d]`, the output table `[vocab_size, d]`.
_TF_BLOCK, _TF_ATTENTION = "model/h{layer}", "model/h{layer}/attn"
IGPT_OPENAI_BERT = [
    Entry("model/wte", "token_embedding"),
    Entry("model/wpe", "position_embedding"),
    Entry(f"{_TF_BLOCK}/ln_1/g", "blocks/blocks/attention_norm/scale"),
    Entry(  # three [h, p, d] ↔ [d, 3, h, p]
        (f"{_TF_ATTENTION}/q_proj", f"{_TF_ATTENTION}/k_proj", f"{_TF_ATTENTION}/v_proj"),
        "blocks/blocks/qkv/kernel",
        lambda q, k, v, h: np.stack([q, k, v]).transpose(3, 0, 1, 2),
        lambda w: tuple(w.transpose(1, 2, 3, 0)),
    ),
    Entry(f"{_TF_ATTENTION}/c_proj", "blocks/blocks/attention_output/kernel"),
    Entry(f"{_TF_BLOCK}/ln_2/g", "blocks/blocks/mlp_norm/scale"),
    Entry(f"{_TF_BLOCK}/mlp/c_fc/w", "blocks/blocks/mlp_in/kernel"),
    Entry(f"{_TF_BLOCK}/mlp/c_proj/w", "blocks/blocks/mlp_out/kernel"),
    Entry("model/ln_f/g", "head_norm/scale"),
    Entry("model/wtet", "head/kernel", lambda w, h: w.T, lambda w: w.T),
]
# The next-pixel models have a start token, the last row of our table.
IGPT_OPENAI = [
    Entry(
        ("model/wte", "model/sos"),
        "token_embedding",
        lambda w, start, h: np.concatenate([w, start[None]]),
        lambda w: (w[:-1], w[-1]),
    ),
    *IGPT_OPENAI_BERT[1:],
]

# A ViT under a projection head of three layers, in place of the classifier; the head's own norm is the ViT's last.
SIMDINO = [
    *(
        entry._replace(released=f"backbone.{entry.released}")
        for entry in VIT_TIMM
        if not str(entry.released).startswith("head.")
    ),
    *_linear("head.mlp.0", "head/mlp_in"),
    *_linear("head.mlp.2", "head/projection"),
    *_linear("head.mlp.4", "head/mlp_out"),
]
