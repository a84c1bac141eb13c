"""What the class token looks at: attention weights by head and layer, also on a finer grid than that of the patches.

The weights are computed from the queries and keys that a block projects, whatever kernel of attention the model runs with:
kernels return values, not weights. In a white box W = LN(Z) U_k is both,
    a_k = softmax(p^-½ w_class W_kᵀ).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import InputError
from crate_jax.models import ImageConfig, Model, Params
from crate_jax.models.stack import Intermediates


def attention_reader(config: ImageConfig) -> Callable[[Intermediates], jax.Array]:
    """A function for `trace=` that gives the attention of one layer to the tokens, float32 `[b, heads, n]`.

    With a class token (the first of the n) it is the class token's row of weights; without one the mean of all rows. Rows of
    softmax sum to 1; those of a CRATE with linear attention are p^-½ w_class W_kᵀ / n and may be negative.

    Raises:
      InputError: a model that compares no tokens, or none of images.
    """
    if not isinstance(config, ImageConfig):
        raise _no_attention(config.family)
    softmax = config.has_attention
    has_class_token = config.pool == "class"

    def read(intermediates: Intermediates) -> jax.Array:
        key = intermediates.get("key", intermediates.get("subspace_in"))
        if key is None:
            raise _no_attention(config.family)
        key = key.astype(jnp.float32)
        query = intermediates.get("query", key).astype(jnp.float32)
        query = query[:, :, :1] if has_class_token else query
        scores = jnp.einsum("bkip,bkjp->bkij", query, key) * key.shape[-1] ** -0.5
        weights = jax.nn.softmax(scores, axis=-1) if softmax else scores / key.shape[-2]
        return weights.mean(axis=-2)

    return read


def _no_attention(family: str) -> InputError:
    return InputError(
        f"attention of {family}: found no attention between the tokens of an image; accepted: crate, crate_alpha, "
        "crate_mae, vit"
    )


def compares_tokens(model: Model) -> bool:
    """Whether `attention_maps` has something to show of a model."""
    if not isinstance(model.config, ImageConfig):
        return False
    image = jax.ShapeDtypeStruct((1, *model.config.image_shape), jnp.float32)
    _, seen = jax.eval_shape(
        lambda params, x: model.apply(params, x, trace=True), model.abstract_params, image
    )
    return "key" in seen or "subspace_in" in seen


def attention_maps(model: Model, params: Params, images: jax.Array) -> jax.Array:
    """Attention of the class token to each patch, by layer and head (see `attention_reader`).

    Args:
      model: of images, with attention. params: its parameters.
      images: `[b, h, w, c]`, normalised as the model wants them.
    Returns:
      float32 `[b, layers, heads, rows, columns]`; what the class token gives itself is not in it, so the sum is below 1.
    """
    weights = model.apply(params, images, trace=attention_reader(model.config))[1]
    rows, columns = (side // model.config.patch_size for side in images.shape[1:3])
    weights = weights[..., -rows * columns :]
    return jnp.moveaxis(weights.reshape(*weights.shape[:-1], rows, columns), 1, 0)


def at_shifts(
    read: Callable[[np.ndarray], np.ndarray], images: np.ndarray, *, patch_size: int, stride: int
) -> np.ndarray:
    """A map that has a value per patch, at a finer resolution: that of images shifted by less than a patch, put together.

    A model of patches gives one value per patch_size² pixels. Shifted by `stride` pixels it gives the values of patches in
    between: m² passes, m = patch_size/stride, make a map with m² times as many values, each centred on its own `stride`²
    pixels (half a pixel off where patch_size − stride is odd). The border is continued by reflection.

    Args:
      read: `[b, h, w, c]` → `[b, …, rows, columns]`, one value per patch.
      images: `[b, h, w, c]`.
      patch_size: of the model, in pixels.
      stride: divides it.
    Returns:
      `[b, …, rows·m, columns·m]`.
    Raises:
      InputError: a stride that does not divide the patch size.
    """
    if stride < 1 or patch_size % stride:
        raise InputError(
            f"stride: found {stride}; accepted: a divisor of the patch size {patch_size}, such as {patch_size // 2 or 1}"
        )
    steps = patch_size // stride
    margin = (patch_size - stride) // 2
    height, width = images.shape[1:3]
    widths = ((0, 0), (margin, patch_size), (margin, patch_size), (0, 0))
    # Not more of the image than there is: reflection needs a pixel beyond the border for every pixel of the margin.
    mode = "reflect" if min(height, width) > patch_size else "edge"
    padded = np.pad(images, widths, mode=mode)
    out = None
    for i in range(steps):
        for j in range(steps):
            top, left = i * stride, j * stride
            values = np.asarray(read(padded[:, top : top + height, left : left + width]))
            if out is None:
                out = np.empty(
                    (*values.shape[:-2], values.shape[-2] * steps, values.shape[-1] * steps), values.dtype
                )
            out[..., i::steps, j::steps] = values
    return out
