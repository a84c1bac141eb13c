"""Augmentation on the device, inside the jitted step: of whole batches, after normalisation, before the model.

Every function takes a key; the step derives it from (seed, step), so a resumed run draws what an uninterrupted one would.
Example i is paired with example i − 1 of its batch, the first with the last.
"""

import jax
import jax.numpy as jnp


def normalise(images: jax.Array, max_value: int, mean: jax.Array, std: jax.Array) -> jax.Array:
    """(x / max_value − mean) / std in float32, for uint8 `[…, c]`; mean and std are `[c]` or `[1]`."""
    return (images.astype(jnp.float32) / max_value - mean) / std


def mixup(key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Mixup (Zhang et al. 2018): λ x_i + (1 − λ) x_{i−1}, targets alike; one λ ~ Beta(α, α) for the batch.

    Args:
      key: decides λ.
      images: `[b, h, w, c]`.
      targets: `[b, classes]`, probabilities.
      alpha: α > 0.
    """
    share = jax.random.beta(key, alpha, alpha)
    return (
        share * images + (1 - share) * _neighbour(images),
        share * targets + (1 - share) * _neighbour(targets),
    )


def cutmix(
    key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """CutMix (Yun et al. 2019): a box of x_{i−1} replaces that of x_i, targets weighted by the pixels; see `mixup`.

    The box has a share 1 − λ of the area, λ ~ Beta(α, α), and its centre anywhere in the image, so that it may be cut off
    at the border; the targets' weights count the pixels that were replaced.
    """
    share_key, box_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha)
    height, width = images.shape[1:3]
    side = jnp.sqrt(1 - share)
    box = _box(jax.random.uniform(box_key, (2,)), side * height, side * width, height, width)
    kept = 1 - jnp.mean(box.astype(jnp.float32))
    images = jnp.where(box[None, :, :, None], _neighbour(images), images)
    return images, kept * targets + (1 - kept) * _neighbour(targets)


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, *, mixup_alpha: float, cutmix_alpha: float
) -> tuple[jax.Array, jax.Array]:
    """`mixup` or `cutmix`, whichever has a positive α; where both have, either with probability 1/2 for each batch."""
    if not mixup_alpha and not cutmix_alpha:
        return images, targets
    if not cutmix_alpha:
        return mixup(key, images, targets, mixup_alpha)
    if not mixup_alpha:
        return cutmix(key, images, targets, cutmix_alpha)
    choice, key = jax.random.split(key)
    return jax.lax.cond(
        jax.random.bernoulli(choice),
        lambda: mixup(key, images, targets, mixup_alpha),
        lambda: cutmix(key, images, targets, cutmix_alpha),
    )


def random_erase(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Random erasing (Zhong et al. 2020): in each image, with some probability, a box becomes N(0, 1) noise.

    The box's share of the area is uniform in [0.02, 1/3], the logarithm of its height over its width uniform in
    ± log(10/3); where it does not fit, it is cut off at the border.

    Args:
      key: decides everything; example i's draws do not depend on the size of the batch's other dimensions.
      images: normalised, `[b, h, w, c]`.
      probability: of an image to be changed.
    """
    height, width = images.shape[1:3]

    def one(key, image):
        keys = jax.random.split(key, 5)
        area = jax.random.uniform(keys[0], minval=0.02, maxval=1 / 3) * height * width
        aspect = jnp.exp(jax.random.uniform(keys[1], minval=-1.0, maxval=1.0) * jnp.log(10 / 3))
        sides = jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)
        box = _box(jax.random.uniform(keys[2], (2,)), *sides, height, width)
        box &= jax.random.bernoulli(keys[3], probability)
        return jnp.where(box[..., None], jax.random.normal(keys[4], image.shape, image.dtype), image)

    return jax.vmap(one)(jax.random.split(key, images.shape[0]), images)


def _neighbour(x: jax.Array) -> jax.Array:
    return jnp.roll(x, 1, axis=0)


def _box(centre: jax.Array, box_height, box_width, height: int, width: int) -> jax.Array:
    """Which pixels `[height, width]` lie in a box around a place in [0, 1)²."""
    rows, columns = jnp.arange(height) + 0.5, jnp.arange(width) + 0.5
    inside_rows = jnp.abs(rows - centre[0] * height) < box_height / 2
    inside_columns = jnp.abs(columns - centre[1] * width) < box_width / 2
    return inside_rows[:, None] & inside_columns[None, :]
