"""ViT, the black box beside CRATE: same trainer, same data, same recipe. Default: scikit-learn's digits, offline.

    python -m crate_jax.train --config=configs/vit.py --workdir=runs/vit

Hardware: 2 CPU cores, two minutes. Measured: 98.6 % of the 360 held-out images.

Variants (--config=configs/vit.py:VARIANT):
    cifar10     the recipe of configs/crate.py:cifar10 for ViT-Tiny
    cifar10_small
                the equal of configs/crate.py:cifar10_small: as many parameters, the same recipe
    cifar10_tiny
                133,760 parameters, the equal of configs/crate.py:cifar10_tiny, with its recipe
    cifar10_medium
                683,242 parameters, the equal of configs/crate.py:cifar10_medium, with its recipe. Not run here.
    tiny | small | base | large
                ImageNet-1K with the recipe of configs/crate.py, as the paper compares them (arXiv 2306.01129): Lion, lr
                2.4e-4, weight decay 0.5, batch 2048, 150 epochs. Its top-1 for tiny and small: 71.5, 72.4. Data:
                ImageNet as crate_jax.prepare writes it (docs/data.md). Not run here.

Differences: the authors' ViT reads the mean of the patches, ours a class token; those of the recipe are in configs/crate.py.
"""

from functools import partial

from crate_jax import models
from crate_jax.runs import recipes
from crate_jax.runs.config import Config, choose


def digits() -> Config:
    return recipes.digits(
        models.ViTConfig(image_size=8, patch_size=4, channels=1, num_classes=10, dim=48, depth=6, heads=4)
    )


def cifar10() -> Config:
    return recipes.cifar10(models.vit("tiny", image_size=32, patch_size=4, num_classes=10))


def cifar10_small() -> Config:
    return recipes.cifar10_small(models.ViTConfig(**recipes.SMALL, dim=48, heads=4, mlp_ratio=4.3))


def cifar10_tiny() -> Config:
    return recipes.cifar10_tiny(models.ViTConfig(**recipes.TINY, dim=50, heads=5))


def cifar10_medium() -> Config:
    return recipes.cifar10_medium(models.ViTConfig(**recipes.MEDIUM, dim=96, heads=3))


def imagenet(size: str) -> Config:
    return recipes.imagenet(models.vit(size))


def get_config(variant="digits"):
    sizes = {size: partial(imagenet, size) for size in ("tiny", "small", "base", "large")}
    cifar = {
        "cifar10": cifar10,
        "cifar10_small": cifar10_small,
        "cifar10_tiny": cifar10_tiny,
        "cifar10_medium": cifar10_medium,
    }
    return choose(variant, {"digits": digits, **cifar, **sizes})
