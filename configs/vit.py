"""ViT, the black box beside CRATE: same trainer, same data, same recipe. Default: scikit-learn's digits, offline.

    python -m crate_jax.train --config=configs/vit.py --workdir=runs/vit

Hardware: 2 CPU cores, two minutes. Measured: 97.5 % of the 360 held-out images.

Variants (--config=configs/vit.py:VARIANT):
    cifar10     the recipe of configs/crate.py:cifar10 for ViT-Tiny
    tiny | small | base | large
                ImageNet-1K with the recipe of configs/crate.py, as the paper compares them (arXiv 2306.01129): Lion, lr
                2.4e-4, weight decay 0.5, batch 2048, 150 epochs. Its top-1 for tiny and small: 71.5, 72.4. Data:
                ImageNet as crate_jax.prepare writes it (docs/data.md). Not run here.
"""

from functools import partial

from crate_jax import models
from crate_jax.training.config import Config, DataConfig, OptimizerConfig, choose, epochs, percent


def digits() -> Config:
    return Config(
        model=models.ViTConfig(
            image_size=8, patch_size=4, channels=1, num_classes=10, dim=48, depth=6, heads=4
        ),
        batch_size=64,
        total=epochs(120),
        data=DataConfig(name="digits", shift=0.75),
        optimizer=OptimizerConfig(name="lion", lr=5e-4, weight_decay=0.05, clip_norm=1.0),
    )


def cifar10() -> Config:
    return Config(
        model=models.vit("tiny", image_size=32, patch_size=4, num_classes=10),
        batch_size=128,
        total=epochs(100),
        warmup=epochs(5),
        log=percent(0.1),
        eval=epochs(5),
        checkpoint=epochs(5),
        data=DataConfig(
            name="tfds:cifar10",
            image_size=32,
            channels=3,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            flip=True,
            crop_padding=4,
        ),
        optimizer=OptimizerConfig(name="lion", lr=2e-4, weight_decay=0.5, clip_norm=1.0),
    )


def imagenet(size: str) -> Config:
    return Config(
        model=models.vit(size),
        batch_size=2048,
        label_smoothing=0.1,
        total=epochs(150),
        warmup=epochs(5),
        log=percent(0.1),
        eval=epochs(1),
        checkpoint=epochs(1),
        data=DataConfig(
            name="array_record:data/imagenet",
            image_size=224,
            channels=3,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            eval_resize=256,
            crop_scale=(0.08, 1.0),
            flip=True,
        ),
        optimizer=OptimizerConfig(name="lion", lr=2.4e-4, weight_decay=0.5),
    )


def get_config(variant="digits"):
    sizes = {size: partial(imagenet, size) for size in ("tiny", "small", "base", "large")}
    return choose(variant, {"digits": digits, "cifar10": cifar10, **sizes})
