"""Random views of images, on the device: crops of any size, colours and blur.

Every view of every image has its own key, and what is drawn depends on that alone. Images are float `[b, h, w, c]` with
values in [0, 1]; they are cut, mirrored, then changed in colour.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Of a crop: height over width lies between this and its inverse.
ASPECT = 3 / 4
# The released strengths of brightness, contrast and saturation, and the probability of any of them.
JITTER, JITTER_PROBABILITY = (0.4, 0.4, 0.2), 0.8
GREY_PROBABILITY = 0.2
# Standard deviations of the blur, in units of `Kind.blur_unit`.
BLUR = (0.1, 2.0)
# Weights of red, green and blue in grey.
LUMA = (0.299, 0.587, 0.114)


class Kind(NamedTuple):
    """What the views of one kind are drawn from.

    Attributes:
      size: height and width of the view.
      scale: smallest and largest share of the image's area; None: the image is the view, cut already.
      flip: mirror half of them.
      blur, solarise: probability of each.
      blur_unit: what the blur's width is counted in, in pixels of the view.
    """

    size: int
    scale: tuple[float, float] | None
    flip: bool
    blur: float
    blur_unit: float
    solarise: float


def random_views(keys: jax.Array, images: jax.Array, kind: Kind) -> jax.Array:
    """A view of each image by its key `[b]`, `[b, size, size, c]` in [0, 1]."""
    return jax.vmap(partial(_view, kind=kind))(keys, images)


def _view(key: jax.Array, image: jax.Array, *, kind: Kind) -> jax.Array:
    crop_key, flip_key, color_key, blur_key, solarise_key = jax.random.split(key, 5)
    view = image if kind.scale is None else random_crop(crop_key, image, kind.size, kind.scale)
    if kind.flip:
        view = jnp.where(jax.random.bernoulli(flip_key), view[:, ::-1], view)
    view = random_colors(color_key, view)
    if kind.blur:
        view = _sometimes(blur_key, kind.blur, partial(random_blur, unit=kind.blur_unit), view)
    if kind.solarise:
        view = _sometimes(solarise_key, kind.solarise, lambda _, x: jnp.where(x < 0.5, x, 1 - x), view)
    return view


def random_crop(key: jax.Array, image: jax.Array, size: int, scale: tuple[float, float]) -> jax.Array:
    """A part of the image, resized (linear, antialiased) to `[size, size, c]`.

    Its share of the area is uniform in `scale`, the logarithm of its aspect uniform between those of 3/4 and 4/3, its place
    uniform; a side that would not fit is cut to the image's.
    """
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    area = jax.random.uniform(area_key, minval=scale[0], maxval=scale[1])
    log_aspect = jnp.log(ASPECT) * jax.random.uniform(aspect_key, minval=-1.0, maxval=1.0)
    sides = jnp.minimum(1.0, jnp.sqrt(area) * jnp.exp(jnp.array([0.5, -0.5]) * log_aspect))
    begin = jax.random.uniform(place_key, (2,)) * (1 - sides)
    whole = jnp.array(image.shape[:2], jnp.float32)
    zoom = size / (sides * whole)
    return jax.image.scale_and_translate(
        image, (size, size, image.shape[-1]), (0, 1), zoom, -begin * whole * zoom, method="linear"
    )


def random_colors(key: jax.Array, image: jax.Array) -> jax.Array:
    """Brightness, contrast and saturation changed at random, and colours sometimes taken away; grey images have no more than
    the first two.
    """
    factor_key, jitter_key, grey_key = jax.random.split(key, 3)
    spans = jnp.array(JITTER)
    brightness, contrast, saturation = 1 + spans * jax.random.uniform(factor_key, (3,), minval=-1.0)
    color = image.shape[-1] == 3
    grey = lambda x: x @ jnp.array(LUMA)[:, None] if color else x  # noqa: E731

    def jitter(_, x):
        x = jnp.clip(x * brightness, 0, 1)
        x = jnp.clip(jnp.mean(grey(x)) * (1 - contrast) + contrast * x, 0, 1)
        return jnp.clip(grey(x) * (1 - saturation) + saturation * x, 0, 1)

    image = _sometimes(jitter_key, JITTER_PROBABILITY, jitter, image)
    if not color:
        return image
    return _sometimes(grey_key, GREY_PROBABILITY, lambda _, x: jnp.broadcast_to(grey(x), x.shape), image)


def random_blur(key: jax.Array, image: jax.Array, unit: float) -> jax.Array:
    """A Gaussian blur of random width, BLUR times `unit` pixels; at the border what lies inside counts."""
    size = image.shape[0]
    width = jax.random.uniform(key, minval=BLUR[0], maxval=BLUR[1]) * unit
    offsets = jnp.arange(size)[:, None] - jnp.arange(size)
    weights = jax.nn.softmax(-0.5 * (offsets / width) ** 2, axis=-1)
    return jnp.einsum("ij,jkc,lk->ilc", weights, image, weights)


def _sometimes(key: jax.Array, probability: float, change, image: jax.Array) -> jax.Array:
    choice_key, key = jax.random.split(key)
    return jnp.where(jax.random.bernoulli(choice_key, probability), change(key, image), image)
