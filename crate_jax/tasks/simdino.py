"""Self-distillation held apart by the coding rate: SimDINO (Wu et al. 2025, arXiv 2502.10385)."""

from functools import partial

import jax
import jax.numpy as jnp

from crate_jax import InputError, objectives
from crate_jax.data.augmentation import Crops
from crate_jax.runs.config import Config
from crate_jax.tasks import augment
from crate_jax.tasks.base import Apply, Batch, Metrics, Task, fixed_keys, normalised_images
from crate_jax.tasks.tokenizer import ValueMeaning
from crate_jax.tasks.views import Kind, random_views

# Released: of the first global view, the second, and the local ones.
BLUR, SOLARISE = (1.0, 0.1, 0.5), (0.0, 0.2, 0.0)


def simdino(config: Config, meaning: ValueMeaning) -> Task:
    """L = mean over the pairs of different views (t global, v any) of ½‖z_v − z̄_t‖² − γ R_ε((z_g + z̄_g)/2), the latter the
    mean over the two global views.

    z = f/‖f‖ is the model's output for a view, z̄ that of the teacher, whose parameters are the moving average of the model's
    and have no gradient; R_ε is the coding rate of a batch of n features of dimension d and γ = (d + n)/(d n), as released.
    The model may be any whose output is `[b, d]`: its classes are the features. Views are cut out of the whole image by the
    pipeline (`simdino.whole_image`) or out of the model's input on the device; flipped, coloured and blurred on the device,
    anew for each (seed, step, place in the batch).

    `simdino.groups` cuts the batch into parts and takes the mean of their rates, each part in the place of all n features:
    what the released code computes on as many devices.

    In evaluation views depend on the example's place in the split alone, the
    model is its own teacher, and the coding rate is that of an evaluation batch, averaged over batches by their examples: it
    depends on the batch size.

    Raises:
      InputError: a model without features of images, views that do not fit, or no momentum of the teacher.
    """
    _check(config)
    options, model = config.simdino, config.model
    local_size = options.local_size or model.image_size
    sizes = (model.image_size, model.image_size, local_size)
    scales = (options.global_scale, options.global_scale, options.local_scale)
    # Released blurs are as wide, in a view's own pixels, of local views of 96 as of global ones of 224.
    unit = model.image_size / 224
    kinds = [
        Kind(size, scale, options.flip, blur, unit, solarise)
        for size, scale, blur, solarise in zip(sizes, scales, BLUR, SOLARISE, strict=True)
    ]
    mean, std = jnp.asarray(config.data.mean), jnp.asarray(config.data.std)
    entries = {"global_views", "local_views"} if options.whole_image else {"image"}

    def views(batch: Batch, keys: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The two global views `[b, 2, …]` of each image and the local ones `[b, v, …]`, normalised, by its key `[b]`."""
        scaled = {name: batch[name].astype(jnp.float32) / meaning.max_value for name in entries & set(batch)}
        fold = jax.vmap(jax.random.fold_in, (0, None))

        def draw(i: int, kind: Kind, name: str, place: int) -> jax.Array:
            if options.whole_image:
                return random_views(fold(keys, i), scaled[name][:, place], kind._replace(scale=None))
            return random_views(fold(keys, i), scaled["image"], kind)

        wide = [draw(i, kind, "global_views", i) for i, kind in enumerate(kinds[:2])]
        local = [draw(2 + i, kinds[2], "local_views", i) for i in range(options.local_views)]
        normalise = partial(augment.normalise, max_value=1, mean=mean, std=std)
        return normalise(jnp.stack(wide, axis=1)), normalise(jnp.stack(local, axis=1)) if local else None

    def terms(apply: Apply, teacher: Apply, batch: Batch, view_keys: jax.Array, mask: jax.Array, **train):
        wide, local = views(batch, view_keys)
        target = jax.lax.stop_gradient(unit_features(teacher, wide))
        student = unit_features(apply, wide, **train)
        seen = student if local is None else jnp.concatenate([student, unit_features(apply, local, **train)])
        return alignment(seen, target, mask), expansion(
            (student + target) / 2, mask, options.eps_sq, options.groups
        )

    def loss(apply: Apply, batch: Batch, key: jax.Array, teacher: Apply):
        view_key, key = jax.random.split(key)
        mask = jnp.ones(len(batch["image"]))
        view_keys = jax.random.split(view_key, len(mask))
        aligned, expanded = terms(apply, teacher, batch, view_keys, mask, train=True, key=key)
        return options.alignment * aligned - expanded, {"alignment": aligned, "coding_rate": expanded}

    def evaluate(apply: Apply, batch: Batch) -> Metrics:
        aligned, expanded = terms(apply, apply, batch, fixed_keys(batch["index"]), batch["mask"])
        count = jnp.sum(batch["mask"])
        means = {
            "loss": options.alignment * aligned - expanded,
            "alignment": aligned,
            "coding_rate": expanded,
        }
        return {name: (count * mean, count) for name, mean in means.items()}

    return Task(normalised_images(config, meaning), loss, evaluate, teacher=True)


def crops(config: Config) -> Crops | None:
    """The views that the pipeline cuts out of each image, two global ones and the local ones; None: the device cuts them."""
    options, size = config.simdino, getattr(config.model, "image_size", None)
    if not options.whole_image:
        return None
    kinds = {
        "global_views": (2, size, options.global_scale),
        "local_views": (options.local_views, options.local_size or size, options.local_scale),
    }
    return Crops(kinds, config.data.channels)


def _check(config: Config) -> None:
    """Refuse what the task cannot work with, see `simdino`."""
    options, model = config.simdino, config.model
    num_features = getattr(model, "num_classes", 0)
    if not hasattr(model, "image_size") or not num_features:
        raise InputError(
            f"task: simdino needs features of images, which model.family {model.family!r} does not give; accepted: a model "
            "of images with model.num_classes, their number, above 0"
        )
    if not 0 < config.ema_decay < 1:
        raise InputError(
            f"ema_decay: found {config.ema_decay:g}; accepted for task simdino: between 0 and 1, the teacher's momentum"
        )
    if model.image_width not in (None, model.image_size):
        raise InputError(
            f"data.image_width: found {model.image_width}; accepted for task simdino: none (views are square)"
        )
    local_size = options.local_size or model.image_size
    if local_size % model.patch_size:
        raise InputError(
            f"simdino.local_size: found {local_size}; accepted: multiples of model.patch_size {model.patch_size}"
        )
    if config.batch_size // config.accumulate % options.groups:
        raise InputError(
            f"simdino.groups: found {options.groups}; accepted: divisors of batch_size {config.batch_size} in "
            f"{config.accumulate} slice(s)"
        )
    if options.local_views < 0:
        raise InputError(f"simdino.local_views: found {options.local_views}; accepted: 0 or more")
    for name in ("global_scale", "local_scale"):
        scale = getattr(options, name)
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise InputError(
                f"simdino.{name}: found {scale}; accepted: two shares of the area, above 0, the smaller one first"
            )


def unit_features(apply: Apply, views: jax.Array, **options) -> jax.Array:
    """`[b, v, h, w, c]` → float32 `[v, b, d]`, each of length 1."""
    # The batch is the outer axis of the merged one: a device's part of it stays where it is.
    features, _ = apply(views.reshape(-1, *views.shape[2:]), **options)
    features = jnp.swapaxes(features.reshape(*views.shape[:2], -1), 0, 1)
    return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-6)


def alignment(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of ½‖z_v − z̄_t‖² over examples and over pairs of a view with another one of the teacher's.

    Args:
      student: `[v, b, d]`, unit features of all views, those of the teacher first.
      teacher: `[t, b, d]`.
      mask: `[b]`, 1 for the examples that count.
    """
    distance = 1 - jnp.einsum("vbd,tbd->tvb", student, teacher, precision=jax.lax.Precision.HIGHEST)
    other = 1 - jnp.eye(len(teacher), len(student))
    return jnp.einsum("tvb,tv,b->", distance, other, mask) / (jnp.sum(other) * jnp.sum(mask))


def expansion(features: jax.Array, mask: jax.Array, eps_sq: float, groups: int = 1) -> jax.Array:
    """γ R_ε of the features of a view `[g, b, d]`, the mean over views; only the examples whose `mask` `[b]` is 1 count.

    With `groups` it is the mean of γ ½ log det(I + d/(n ε²) Z_jᵀZ_j) over as many parts Z_j of the n examples.
    """
    n, d = jnp.sum(mask), features.shape[-1]
    mask = jnp.broadcast_to(mask, features.shape[:2])
    if groups > 1:
        shape = (len(features), groups, -1)
        mask, features = mask.reshape(shape), features.reshape(*shape, d)
        # The rate of a part divides by its own number of examples, not by n.
        features *= jnp.sqrt(jnp.sum(mask, axis=-1) / n)[..., None, None]
    return -jnp.mean(
        objectives.simdino_regularizer(features, eps_sq=eps_sq, gamma=(d + n) / (d * n), mask=mask)
    )
