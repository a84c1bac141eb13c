"""What every model's configuration has, and how `auto` in it becomes a value."""

import dataclasses
from typing import NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp

from crate_jax import InputError
from crate_jax.models.attention import KERNELS, resolve_kernel
from crate_jax.settings import one_of, setting

DTYPES = ("float32", "bfloat16", "auto")
# What JAX calls the platform of a GPU, here and there.
GPU_PLATFORMS = ("gpu", "cuda", "rocm")
# Layers that are compiled one by one on a GPU: those of the published image models and of iGPT-S. It takes up to a minute.
UNROLLED = 24


class Images(NamedTuple):
    """The images that a model will see, from which its configuration follows: `config.fit(images) -> (config, size)`.

    `size` is the images' own height and width, `requested_size` the one asked for (None: the model chooses), `levels` the
    number of values of a pixel; `user_set` names the fields of the configuration that the user set by hand. With
    `requested_width` the width is another than the height.
    """

    size: int
    requested_size: int | None
    channels: int
    num_classes: int
    levels: int
    user_set: frozenset[str] = frozenset()
    requested_width: int | None = None

    def check_num_classes(self, found: int) -> None:
        """Raise for a number of classes that the user has set and the images do not have."""
        if "num_classes" in self.user_set and found != self.num_classes:
            raise InputError(
                f"model.num_classes: found {found}; accepted: {self.num_classes}, that of the images"
            )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What every model has, whatever it reads: a stack of `depth` equal blocks of width `dim`.

    `scan` compiles one block for all layers instead of each on its own, `remat` recomputes activations in the backward pass
    (`stack.REMAT_POLICIES`). `dtype` is the type that matmuls run in and `attention_kernel` the implementation of attention
    (a key of `attention.KERNELS`). `auto`, and for `scan` None, is decided by `resolve`, before the model is built.
    """

    family: str = setting("", "The kind of model, a key of models.FAMILIES.")
    dim: int = setting(384, "Width: features of a token.", least=1)
    depth: int = setting(12, "Number of blocks.", least=1)
    heads: int = setting(6, "Heads, or subspaces, of a block.", least=1)
    scan: bool | None = setting(
        None,
        "Compile one block for all layers; left out: but on a GPU each of up to 24 layers by itself, which is faster.",
    )
    remat: str = setting("none", "What the backward pass recomputes to save memory: none, dots or full.")
    dtype: str = setting("auto", "Type that matmuls run in; auto: bfloat16 on TPU and GPU.", choices=DTYPES)
    attention_kernel: str = setting("auto", "Implementation of attention.", choices=("auto", *KERNELS))

    @property
    def head_dim(self) -> int:
        """Features of a head.

        Raises:
          InputError: heads that do not divide the width.
        """
        if self.dim % self.heads:
            raise InputError(f"model.heads: found {self.heads}, which does not divide model.dim {self.dim}")
        return self.dim // self.heads

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The type that matmuls run in.

        Raises:
          InputError: `auto`: modules are built from resolved configurations.
        """
        one_of("model.dtype of a module (models.resolve decides what auto is)", self.dtype, DTYPES[:-1])
        return jnp.dtype(self.dtype)

    @property
    def has_attention(self) -> bool:
        """Whether the blocks call `attention`, so that `attention_kernel` has an effect."""
        return True

    @property
    def sequence_length(self) -> int:
        """Tokens that a block sees."""
        raise NotImplementedError

    def fit(self, images: Images) -> tuple[Self, int]:
        """The configuration for such images, and the size that they must be given."""
        raise NotImplementedError

    def describe_input(self) -> str:
        """What goes in and what comes out, for people."""
        raise NotImplementedError


ConfigT = TypeVar("ConfigT", bound=ModelConfig)


def resolve(config: ConfigT, platform: str | None = None, *, deterministic: bool = False) -> ConfigT:
    """The configuration with a value for each `auto`: what a model on these devices is built from.

    `dtype` becomes bfloat16 on TPU and GPU and float32 on CPU, where XLA gains nothing from bfloat16;
    `attention_kernel` what `attention.AUTO` names; `scan` true, but for up to UNROLLED layers on a GPU, where a scan takes
    half as long again because it stores what the backward pass needs in arrays of all layers. What is set is checked and
    stays.

    Args:
      config: a model's configuration.
      platform: of the devices the model will run on, as JAX names it (`device.platform`); by default that of the process.
      deterministic: whether `auto` may stand only for kernels that give the same bits every time.
    Raises:
      InputError: an unknown type; a kernel that is not there, does not run on the platform, is not as deterministic as
        asked for, or that the model never calls.
    """
    platform = platform or jax.default_backend()
    platform = "gpu" if platform in GPU_PLATFORMS else platform
    one_of("model.dtype", config.dtype, DTYPES)
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    if config.has_attention:
        kernel = resolve_kernel(
            config.attention_kernel,
            platform,
            dtype,
            config.head_dim,
            config.sequence_length,
            deterministic=deterministic,
        )
    else:
        one_of(f"model.attention_kernel of {config.family}", config.attention_kernel, ("auto", "xla"))
        kernel = "xla"
    scan = config.scan
    if scan is None:
        scan = platform != "gpu" or config.depth > UNROLLED
    return dataclasses.replace(config, dtype=dtype, attention_kernel=kernel, scan=scan)
