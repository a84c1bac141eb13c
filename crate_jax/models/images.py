"""What the models of image patches share: their configuration, the token grid, and the classifier around the blocks."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from crate_jax import InputError
from crate_jax.models.config import Images, ModelConfig
from crate_jax.models.layers import Dense, gelu_dense, normal_param
from crate_jax.models.model import Params
from crate_jax.models.stack import Block, Edit, Stack, Trace
from crate_jax.settings import one_of, setting


@dataclasses.dataclass(frozen=True)
class ImageConfig(ModelConfig):
    """What every model of image patches has. `image_width=None`: images are as wide as they are high, `image_size`.

    `head_hidden`: width of the two hidden layers of a `ProjectionHead`; 0 is a linear head. `pool`: what the head reads,
    "class" a class token, "mean" the mean of the tokens, with no class token.
    """

    image_size: int = setting(224, "Height of the images, in pixels.", least=1)
    image_width: int | None = setting(None, "Width of the images; left out: as wide as high.", least=1)
    patch_size: int = setting(16, "Height and width of a patch, in pixels.", least=1)
    channels: int = setting(3, "Channels of the images.", least=1)
    num_classes: int = setting(1000, "Outputs of the head.", least=0)
    head_hidden: int = setting(0, "Width of the two hidden layers of the head; 0: a linear head.", least=0)
    pool: str = setting(
        "class", "What the head reads: a class token, or the mean of the tokens.", choices=("class", "mean")
    )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.image_size, self.image_width or self.image_size, self.channels

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width, _ = self.image_shape
        return height // self.patch_size, width // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens an image becomes, the class token not counted."""
        rows, columns = self.grid
        return rows * columns

    @property
    def sequence_length(self) -> int:
        """Tokens that a block sees, the class token among them."""
        return self.num_tokens + (self.pool == "class")

    def fit(self, images: Images) -> tuple[Self, int]:
        """The configuration for such images, and the height that they must be given.

        The grid of patches is kept: the patch size follows the image size, so the token count stays that of this
        configuration. A `patch_size` set by the user is taken as it is. Images of another width than height have the
        patches that fit their height.

        Raises:
          InputError: a requested image size that no suitable patch size divides, or an image size set by the user that is
            not the images'.
        """
        rows, size = self.grid[0], images.requested_size or images.size
        sides = (size, images.requested_width or size)
        if "patch_size" in images.user_set:
            patch = self.patch_size
        elif sides == self.image_shape[:2]:
            patch = self.patch_size
        elif images.requested_size is None and images.requested_width is None:
            # The data leave the size open to a pixel or two: keep the grid exactly.
            patch = max(1, round(size / rows))
            size = patch * min(rows, size // patch)
            sides = (size, size)
        else:
            divisors = (p for p in range(1, size + 1) if not any(side % p for side in sides))
            patch = min(divisors, key=lambda p: abs(size // p - rows))
            if not 0.5 <= size / patch / rows <= 2:
                near = [max(1, round(size / rows)) * rows, (round(size / rows) + 1) * rows]
                raise InputError(
                    f"data.image_size: {_pixels(sides)} has no patch size near a {rows}×{rows} grid; "
                    f"sizes that work: {near}"
                )
        if any(side % patch for side in sides):
            raise InputError(f"model.patch_size: {patch} does not divide data.image_size {_pixels(sides)}")
        for name, found, needed in (
            ("image_size", self.image_size, size),
            ("image_width", self.image_width or self.image_size, sides[1]),
        ):
            if name in images.user_set and found != needed:
                raise InputError(
                    f"model.{name}: found {found}; accepted: {needed}, that of the images (data.{name} changes both)"
                )
        images.check_num_classes(self.num_classes)
        fitted = dataclasses.replace(
            self,
            image_size=size,
            image_width=images.requested_width,
            patch_size=patch,
            channels=images.channels,
            num_classes=images.num_classes,
        )
        return fitted, size

    def describe_input(self) -> str:
        """What goes in and what comes out, for people."""
        height, width, channels = self.image_shape
        patches = f"{self.num_tokens} patches of {self.patch_size}×{self.patch_size}"
        return f"{height}×{width}×{channels} images, {patches}, {self.num_classes} classes"


def _pixels(sides: tuple[int, int]) -> str:
    """One number for a square."""
    return f"{sides[0]} px" if sides[0] == sides[1] else f"{sides[0]}×{sides[1]} px"


def resize_positions(table: jax.Array, old: tuple[int, int], new: tuple[int, int]) -> jax.Array:
    """Position embeddings of one grid of patches for another, interpolated (bicubic, antialiased when there are fewer).

    Args:
      table: `[extra + rows·columns, d]`; the first rows belong to no patch (a class token) and stay.
      old, new: (rows, columns).
    Returns:
      `[extra + new rows·new columns, d]`; the table itself where the grid is the same.
    """
    if old == new:
        return table
    extra = table.shape[0] - old[0] * old[1]
    patches = table[extra:].reshape(*old, -1)
    resized = jax.image.resize(patches, (*new, patches.shape[-1]), method="bicubic")
    return jnp.concatenate([table[:extra], resized.reshape(new[0] * new[1], -1)])


def at_resolution(params: Params, old: ImageConfig, new: ImageConfig) -> Params:
    """The parameters of a model of images for images of another size: every position embedding follows the grid."""

    def one(path, leaf):
        if not path[-1].key.endswith("position_embedding"):
            return leaf
        return resize_positions(jnp.asarray(leaf), old.grid, new.grid)

    return jax.tree_util.tree_map_with_path(one, params)


class ProjectionHead(nnx.Module):
    """Three linear maps with GELU between them, `[…, d]` → `[…, num_classes]`: the head of DINO and SimDINO, initial values
    N(0, 0.02²).
    """

    def __init__(self, config: ImageConfig, *, dtype, rngs: nnx.Rngs):
        hidden = (config.head_hidden,)
        options: dict[str, Any] = {"stddev": 0.02, "use_bias": True, "dtype": dtype, "rngs": rngs}
        self.mlp_in = Dense((config.dim,), hidden, **options)
        self.projection = Dense(hidden, hidden, **options)
        self.mlp_out = Dense(hidden, (config.num_classes,), **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.mlp_out(gelu_dense(self.projection, gelu_dense(self.mlp_in, x)))


class ImageClassifier(nnx.Module):
    """Patch embedding, class token, positions, blocks, norm and linear head.

    Called with images `[b, h, w, c]`; returns `(logits [b, num_classes] float32, trace)`. Images of another size than the
    configuration's are seen with interpolated positions. `edit` changes the tokens between blocks, see `Stack`.

    Args:
      config: an `ImageConfig`.
      embed, make_norm, make_head: each called with `dtype=` and `rngs=`; the module from images to tokens, the norm before
        the head, the head where it is linear.
      make_block: called with `rngs=`; one block.
      class_std, position_std: of the normal initial values.
    """

    def __init__(
        self,
        config: ImageConfig,
        rngs: nnx.Rngs,
        *,
        embed: Callable[..., nnx.Module],
        make_block: Callable[..., Block],
        make_norm: Callable[..., nnx.Module],
        make_head: Callable[..., nnx.Module],
        class_std: float,
        position_std: float,
    ):
        height, width, _ = config.image_shape
        if height % config.patch_size or width % config.patch_size:
            sides = f"{height}" if height == width else f"{height}×{width}"
            raise InputError(
                f"model.patch_size: found {config.patch_size}, which does not divide model.image_size {sides}"
            )
        one_of("model.pool", config.pool, ("class", "mean"))
        self.config, self.dtype = config, config.compute_dtype
        options: dict[str, Any] = {"dtype": self.dtype, "rngs": rngs}
        self.patch_embed = embed(**options)
        with_class = config.pool == "class"
        self.class_token = normal_param((config.dim,), class_std, rngs) if with_class else None
        self.position_embedding = normal_param((config.sequence_length, config.dim), position_std, rngs)
        self.blocks = Stack(lambda rngs: make_block(rngs=rngs), config, rngs=rngs)
        self.head_norm = make_norm(**options)
        self.head = ProjectionHead(config, **options) if config.head_hidden else make_head(**options)

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        trace: Trace = False,
        edit: Edit | None = None,
    ) -> tuple[jax.Array, Any]:
        del train, key  # Nothing in these models is random.
        wanted = None if self.class_token is None else 1
        x, traced = self.features(images, trace=trace, wanted=wanted, edit=edit)
        x = x[:, 0] if self.class_token is not None else jnp.mean(x, axis=1)
        return self.head(self.head_norm(x)).astype(jnp.float32), traced

    def features(
        self,
        images: jax.Array,
        *,
        trace: Trace = False,
        wanted: int | None = None,
        edit: Edit | None = None,
    ) -> tuple[jax.Array, Any]:
        """The tokens `[b, n, d]` after the last block, the class token (if any) first, and the trace. With `wanted` only
        the first so many tokens, see `Stack`.

        Raises:
          InputError: images of another shape.
        """
        height, width, channels = self.config.image_shape
        patch = self.config.patch_size
        if images.ndim != 4 or images.shape[3] != channels or any(side % patch for side in images.shape[1:3]):
            raise InputError(
                f"images: found shape {images.shape}; accepted: [b, {height}, {width}, {channels}], or other multiples of "
                f"{patch} for height and width"
            )
        grid = images.shape[1] // patch, images.shape[2] // patch
        positions = resize_positions(self.position_embedding[...], self.config.grid, grid)
        x = self.patch_embed(images)
        if self.class_token is not None:
            class_token = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, self.config.dim))
            x = jnp.concatenate([class_token.astype(self.dtype), x], axis=1)
        x = x + positions.astype(self.dtype)
        return self.blocks(x, trace=trace, wanted=wanted, edit=edit)
