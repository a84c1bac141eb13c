"""CRATE: the white-box transformer of Yu et al. 2023 (arXiv 2306.01129), as released.

A block is one step of compression and one of sparsification on the sparse rate reduction objective:
    Z½ = Z + MSSA(LN(Z)),   Z' = ISTA(LN(Z½))      (no skip connection around ISTA).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from crate_jax import InputError
from crate_jax.models.layers import ISTA, MSSA, PatchEmbed, layer_norm, linear, resolve_dtype
from crate_jax.models.model import Images
from crate_jax.models.stack import Stack, Trace

# name: (dim, heads, head_dim, depth), arXiv 2306.01129 table 1. Small's heads are 48 wide, not 64.
SIZES = {
    "tiny": (384, 6, 64, 12),
    "small": (576, 12, 48, 12),
    "base": (768, 12, 64, 12),
    "large": (1024, 16, 64, 24),
}


@dataclasses.dataclass(frozen=True)
class CRATEConfig:
    """All that determines a CRATE. `step_size` is η and `penalty` λ of the ISTA step."""

    family: str = "crate"
    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    num_classes: int = 1000
    dim: int = 384
    depth: int = 12
    heads: int = 6
    head_dim: int = 64
    step_size: float = 0.1
    penalty: float = 0.1
    scan: bool = True
    remat: str = "none"
    dtype: str = "auto"

    @property
    def num_tokens(self) -> int:
        """Tokens an image becomes, the class token not counted."""
        return (self.image_size // self.patch_size) ** 2

    def fit(self, images: Images) -> tuple["CRATEConfig", int]:
        """The configuration for such images, and the size that they must be given.

        The grid of patches is kept: the patch size follows the image size, so the token count stays that of this
        configuration. A `patch_size` set by the user is taken as it is.

        Raises:
          InputError: a requested image size that no suitable patch size divides.
        """
        grid = self.image_size // self.patch_size
        size = images.wanted_size or images.size
        if "patch_size" in images.fixed:
            patch = self.patch_size
        elif size == self.image_size:
            patch = self.patch_size
        elif images.wanted_size is None:
            # The data leave the size open to a pixel or two: keep the grid exactly.
            patch = max(1, round(size / grid))
            size = patch * min(grid, size // patch)
        else:
            patch = min((p for p in range(1, size + 1) if size % p == 0), key=lambda p: abs(size // p - grid))
            if not 0.5 <= size / patch / grid <= 2:
                near = [max(1, round(size / grid)) * grid, (round(size / grid) + 1) * grid]
                raise InputError(
                    f"data.image_size: {size} px has no patch size near a {grid}×{grid} grid; "
                    f"sizes that work: {near}"
                )
        if size % patch:
            raise InputError(f"model.patch_size: {patch} does not divide data.image_size {size}")
        fitted = {"image_size": size, "patch_size": patch, "channels": images.channels}
        return dataclasses.replace(self, **fitted, num_classes=images.num_classes), size

    def describe_input(self) -> str:
        """What goes in and what comes out, for people."""
        size, patch = self.image_size, self.patch_size
        image = f"{size}×{size}×{self.channels} images"
        return f"{image}, {self.num_tokens} patches of {patch}×{patch}, {self.num_classes} classes"


def crate(size: str, **overrides) -> CRATEConfig:
    """The configuration of a published size.

    Args:
      size: tiny, small, base or large: 6.1M, 13.1M, 22.8M, 77.6M parameters at 224 px, patch 16, 1000 classes.
      **overrides: any field of `CRATEConfig`.
    """
    if size not in SIZES:
        raise InputError(f"size of CRATE: found {size!r}; accepted: {', '.join(SIZES)}")
    dim, heads, head_dim, depth = SIZES[size]
    return CRATEConfig(**{"dim": dim, "heads": heads, "head_dim": head_dim, "depth": depth, **overrides})


class CRATEBlock(nnx.Module):
    """One MSSA step and one ISTA step; returns the tokens and what `crate_jax.models.trace` reads.

    Args:
      config: any configuration with `dim`, `heads`, `head_dim`, `step_size` and `penalty`.
      causal: whether a token sees only itself and those before it.
    """

    def __init__(self, config: Any, *, causal: bool = False, dtype, rngs: nnx.Rngs):
        self.mssa_norm = layer_norm(config.dim, dtype=dtype, rngs=rngs)
        self.mssa = MSSA(config.dim, config.heads, config.head_dim, causal=causal, dtype=dtype, rngs=rngs)
        self.ista_norm = layer_norm(config.dim, dtype=dtype, rngs=rngs)
        self.ista = ISTA(
            config.dim, step_size=config.step_size, penalty=config.penalty, dtype=dtype, rngs=rngs
        )

    def __call__(self, z: jax.Array, *, report: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        normed = self.mssa_norm(z)
        update = self.mssa(normed)
        compressed = z + update
        sparse = self.ista(self.ista_norm(compressed))
        if not report:
            return sparse, {}
        return sparse, {
            "normed": normed,
            "mssa_in": z,
            "mssa_update": update,
            "mssa_out": compressed,
            "ista_out": sparse,
            "subspace_in": self.mssa.project(normed),
            "subspace_out": self.mssa.project(self.mssa_norm(compressed)),
        }

    def decode(self, z: jax.Array, cache: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The block on one token `[b, d]`, given those before it (see `MSSA.decode`)."""
        update, cache = self.mssa.decode(self.mssa_norm(z), cache, position)
        return self.ista(self.ista_norm((z + update)[:, None]))[:, 0], cache


class CRATE(nnx.Module):
    """Image classifier: patch embedding, class token, CRATE blocks, LayerNorm and linear head on the class token.

    Called with images `[b, h, w, c]`; returns `(logits [b, num_classes] float32, trace)`.
    """

    def __init__(self, config: CRATEConfig, rngs: nnx.Rngs):
        if config.image_size % config.patch_size:
            raise InputError(
                f"model.patch_size: found {config.patch_size}, which does not divide "
                f"model.image_size {config.image_size}"
            )
        dtype = resolve_dtype(config.dtype)
        self.config, self.dtype = config, dtype
        self.patch_embed = PatchEmbed(config.patch_size, config.channels, config.dim, dtype=dtype, rngs=rngs)
        normal = nnx.initializers.normal(1.0)
        self.class_token = nnx.Param(normal(rngs.params(), (config.dim,)))
        self.position_embedding = nnx.Param(normal(rngs.params(), (config.num_tokens + 1, config.dim)))
        self.blocks = Stack(
            lambda rngs: CRATEBlock(config, dtype=dtype, rngs=rngs),
            config.depth,
            scan=config.scan,
            remat=config.remat,
            rngs=rngs,
        )
        self.head_norm = layer_norm(config.dim, dtype=dtype, rngs=rngs)
        self.head = linear(config.dim, config.num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: jax.Array, *, train: bool = False, key: jax.Array | None = None, trace: Trace = False
    ) -> tuple[jax.Array, Any]:
        del train, key  # Nothing in CRATE is random.
        size, channels = self.config.image_size, self.config.channels
        if images.ndim != 4 or images.shape[1:] != (size, size, channels):
            raise InputError(f"images: found shape {images.shape}; accepted: [b, {size}, {size}, {channels}]")
        x = self.patch_embed(images)
        class_token = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, self.config.dim))
        x = jnp.concatenate([class_token.astype(self.dtype), x], axis=1)
        x = x + self.position_embedding[...].astype(self.dtype)
        x, traced = self.blocks(x, trace=trace)
        return self.head(self.head_norm(x[:, 0])).astype(jnp.float32), traced
