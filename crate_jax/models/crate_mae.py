"""CRATE-MAE: the white-box autoencoder of Pai et al. 2024 (arXiv 2404.02446), as released.

The encoder is CRATE's; the decoder undoes its layers in reverse order, each with the operators mirrored:
    encoder   Z½ = Z + MSSA(LN(Z)),   Z' = ISTA(LN(Z½)),
    decoder   Y½ = LN(Y) Dᵀ,          Y' = Y½ − MSSA(LN(Y½)).
A sparse code is turned into tokens by a dictionary where ISTA made the code, and MSSA expands where it compressed.
"""

import dataclasses
import math
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crate_jax import InputError
from crate_jax.models.config import Images
from crate_jax.models.crate import SIZES, CRATEBlock, CRATEConfig
from crate_jax.models.layers import layer_norm, linear, patchify, rows, uniform_init
from crate_jax.models.operators import MSSA
from crate_jax.models.stack import Stack, Trace
from crate_jax.settings import one_of, setting

# Of the norms that end the encoder and the decoder; those inside the blocks keep PyTorch's 1e-5.
FINAL_NORM_EPS = 1e-6
# Fields of a CRATE that stay as released: the decoder mirrors that form alone, and there is no head.
RELEASED = ("output", "update", "attention", "compression_step", "learn_steps", "pool", "head_hidden")


@dataclasses.dataclass(frozen=True)
class CRATEMAEConfig(CRATEConfig):
    """All that determines a CRATE-MAE; `depth` is that of the encoder and, once more, of the decoder.

    `mask_ratio` is the part of the patches that a mask hides. There are no classes, and the fields in RELEASED cannot be
    changed.
    """

    family: str = "crate_mae"
    num_classes: int = 0
    penalty: float = 0.5
    mask_ratio: float = setting(0.75, "Share of the patches that a mask hides.", least=0, below=1)

    def fit(self, images: Images) -> tuple[Self, int]:
        """See `CRATEConfig.fit`. The classes of the images are none of the model's."""
        return super().fit(images._replace(num_classes=0))

    def describe_input(self) -> str:
        """What goes in and what comes out, for people."""
        size, patch = self.image_size, self.patch_size
        return (
            f"{size}×{size}×{self.channels} images, {self.num_tokens} patches of {patch}×{patch} in and out"
        )


def crate_mae(size: str, **overrides) -> CRATEMAEConfig:
    """The configuration of a released size.

    Args:
      size: tiny, small, base or large: 11.6M, 25.4M, 44.6M, 154.3M parameters at 224 px, patch 16.
      **overrides: any field of `CRATEMAEConfig`.
    Raises:
      InputError: another size.
    """
    one_of("size of CRATE-MAE", size, SIZES)
    dim, heads, head_dim, depth = SIZES[size]
    sizes = {"dim": dim, "heads": heads, "head_dim": head_dim, "depth": depth}
    return CRATEMAEConfig(**{**sizes, **overrides})


def random_mask(noise: jax.Array, mask_ratio: float) -> jax.Array:
    """Which patches are hidden: all but the ⌊n (1 − mask_ratio)⌋ whose noise is smallest.

    Args:
      noise: `[b, n]`, a random number for each patch.
      mask_ratio: the part that is hidden, in [0, 1).
    Returns:
      float32 `[b, n]`, 1 where a patch is hidden.
    """
    kept = int(noise.shape[-1] * (1 - mask_ratio))
    rank = jnp.argsort(jnp.argsort(noise, axis=-1), axis=-1)
    return (rank >= kept).astype(jnp.float32)


class CRATEDecoderBlock(nnx.Module):
    """The mirror of a `CRATEBlock`: the dictionary first, then MSSA subtracted."""

    def __init__(self, config: CRATEMAEConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.dtype = dtype = config.compute_dtype
        self.dictionary_norm = layer_norm(dim, dtype=dtype, rngs=rngs)
        # torch.nn.init.kaiming_uniform_ with its default gain √2.
        self.dictionary = nnx.Param(uniform_init(math.sqrt(6 / dim))(rngs.params(), (dim, dim)))
        self.mssa_norm = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.mssa = MSSA(config, rngs=rngs)

    def __call__(
        self,
        z: jax.Array,
        *,
        return_intermediates: bool = False,
        real: int | None = None,
        wanted: int | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        normed = self.dictionary_norm(z)
        dense = (rows(normed) @ self.dictionary[...].astype(self.dtype).T).reshape(normed.shape)
        expanded = dense[:, :wanted] - self.mssa(self.mssa_norm(dense), real=real, wanted=wanted)
        return expanded, (
            {"normed": normed, "dictionary_out": dense, "mssa_out": expanded} if return_intermediates else {}
        )


class CRATEMAE(nnx.Module):
    """Autoencoder of patches, masked where the caller says so.

    Called with images `[b, h, w, c]`; returns `(prediction [b, n, p·p·c] float32, trace)`, the trace that of the encoder's
    layers. With `noise` `[b, n]` the patches that `random_mask` hides are replaced by a learned token before the encoder,
    which sees all n tokens and a class token; without it nothing is hidden. Positions are fixed sines and cosines.

    Two parameters are never used: `position_embedding` and `decoder_projection`. They are released with the model, whose
    published size counts them, so a checkpoint can go there and back.
    """

    def __init__(self, config: CRATEMAEConfig, rngs: nnx.Rngs):
        for name in RELEASED:
            found, accepted = getattr(config, name), getattr(CRATEMAEConfig, name)
            if found != accepted:
                raise InputError(f"model.{name}: found {found!r}; accepted for crate_mae: {accepted!r}")
        if config.image_size % config.patch_size:
            raise InputError(
                f"model.patch_size: found {config.patch_size}, which does not divide "
                f"model.image_size {config.image_size}"
            )
        if config.image_width not in (None, config.image_size):
            raise InputError(
                f"model.image_width: found {config.image_width}; accepted for crate_mae: none (square images)"
            )
        visible = int(config.num_tokens * (1 - config.mask_ratio))
        if not 0 < visible <= config.num_tokens:
            raise InputError(
                f"model.mask_ratio: found {config.mask_ratio}, which leaves {visible} of {config.num_tokens} patches; "
                "accepted: from 0 to less than 1, so that at least one is left"
            )
        self.config = config
        self.dtype = dtype = config.compute_dtype
        dim, patch_dim = config.dim, config.patch_size**2 * config.channels
        self.patch_projection = _xavier_linear(patch_dim, dim, dtype=dtype, rngs=rngs)
        normal = nnx.initializers.normal(0.02)
        self.class_token = nnx.Param(normal(rngs.params(), (dim,)))
        self.mask_token = nnx.Param(normal(rngs.params(), (dim,)))
        positions = sines_and_cosines(dim, config.image_size // config.patch_size)
        self.position_embedding = nnx.Param(jnp.asarray(positions))
        self.decoder_position_embedding = nnx.Param(jnp.asarray(positions))
        self.blocks = Stack(
            lambda rngs: _xavier_mssa(CRATEBlock(config, config, rngs=rngs), rngs), config, rngs=rngs
        )
        self.norm = _final_norm(dim, dtype=dtype, rngs=rngs)
        self.decoder_projection = _xavier_linear(dim, dim, dtype=dtype, rngs=rngs)
        self.decoder_blocks = Stack(
            lambda rngs: _xavier_mssa(CRATEDecoderBlock(config, rngs=rngs), rngs), config, rngs=rngs
        )
        self.decoder_norm = _final_norm(dim, dtype=dtype, rngs=rngs)
        self.prediction_head = _xavier_linear(dim, patch_dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        trace: Trace = False,
        noise: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        del train, key  # What is random here is the mask, and that is the caller's.
        size, channels = self.config.image_size, self.config.channels
        if images.ndim != 4 or images.shape[1:] != (size, size, channels):
            raise InputError(f"images: found shape {images.shape}; accepted: [b, {size}, {size}, {channels}]")
        x = self.patch_projection(patchify(images, self.config.patch_size).astype(self.dtype))
        if noise is not None:
            if noise.shape != x.shape[:2]:
                raise InputError(f"noise: found shape {noise.shape}; accepted: {list(x.shape[:2])}")
            hidden = random_mask(noise, self.config.mask_ratio)[..., None] > 0
            x = jnp.where(hidden, self.mask_token[...].astype(self.dtype), x)
        class_token = jnp.broadcast_to(self.class_token[...].astype(self.dtype), (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([class_token, x], axis=1)
        x = x + jax.lax.stop_gradient(self.decoder_position_embedding[...]).astype(self.dtype)
        x, traced = self.blocks(x, trace=trace)
        x, _ = self.decoder_blocks(self.norm(x))
        return self.prediction_head(self.decoder_norm(x))[:, 1:].astype(jnp.float32), traced


def sines_and_cosines(dim: int, grid: int) -> np.ndarray:
    """Fixed positions, float32 `[1 + grid², dim]`: zeros for the class token, then row by row of the grid
    (sin xω, cos xω, sin yω, cos yω) of the column x and the row y, with dim/4 frequencies ω_i = 10000^(−4i/dim).

    Raises:
      InputError: a width that is not a multiple of 4.
    """
    if dim % 4:
        raise InputError(f"model.dim: found {dim}; accepted: multiples of 4")
    frequencies = 10000.0 ** (-np.arange(dim // 4) * 4 / dim)
    angles = np.arange(grid)[:, None] * frequencies
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    rows, columns = np.repeat(axis, grid, axis=0), np.tile(axis, (grid, 1))
    table = np.concatenate([columns, rows], axis=1)
    return np.concatenate([np.zeros((1, dim)), table]).astype(np.float32)


def _final_norm(dim: int, *, dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(dim, epsilon=FINAL_NORM_EPS, use_fast_variance=False, dtype=dtype, rngs=rngs)


def _xavier_linear(inputs: int, outputs: int, *, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """Affine map with the released initial values: Xavier's uniform kernel and no bias yet."""
    layer = linear(inputs, outputs, dtype=dtype, rngs=rngs)
    layer.kernel = nnx.Param(
        uniform_init(math.sqrt(6 / (inputs + outputs)))(rngs.params(), (inputs, outputs))
    )
    layer.bias = nnx.Param(jnp.zeros(outputs))
    return layer


BlockT = TypeVar("BlockT", CRATEBlock, CRATEDecoderBlock)


def _xavier_mssa(block: BlockT, rngs: nnx.Rngs) -> BlockT:
    """The block with the same initial values in its MSSA, which is wider than `MSSA`'s own by √3."""
    heads, dim, head_dim = block.mssa.bases.shape
    init = uniform_init(math.sqrt(6 / (dim + heads * head_dim)))
    block.mssa.bases = nnx.Param(init(rngs.params(), (heads, dim, head_dim)))
    if block.mssa.output is not None:
        block.mssa.output = nnx.Param(init(rngs.params(), (heads, head_dim, dim)))
        block.mssa.bias = nnx.Param(jnp.zeros(dim))
    return block
