"""CRATE-α: CRATE with an overcomplete, decoupled dictionary and a skip around it. Default: scikit-learn's digits, offline.

    python -m crate_jax.train --config=configs/crate_alpha.py --workdir=runs/crate-alpha

Hardware: 2 CPU cores, two minutes. Measured: 98.3 % of the 360 held-out images.

Variants (--config=configs/crate_alpha.py:VARIANT):
    cifar10       the default's recipe on CIFAR-10 at patch 4, for one GPU: tfds:cifar10 or --config.data.name=folder:PATH
    cifar10_tiny  134,155 parameters, the equal of configs/crate.py:cifar10_tiny, with its recipe
    cifar10_medium
                  677,365 parameters, the equal of configs/crate.py:cifar10_medium, with its recipe. Not run here.
    tiny | small | base | large | huge
                  pre-training on ImageNet-21K as released with the paper (arXiv 2405.20299): Adam(0.9, 0.95), lr 8e-4,
                  weight decay 0.1, batch 4096, 91 epochs, 10 of warm-up, gradients clipped at 1, Inception crops, mixup and
                  CutMix. Data: prepared as configs/crate.py says for ImageNet.
    base_finetune | large_finetune
                  ImageNet-1K from such a run (--config.init_from=WORKDIR): lr 1.6e-4, timm's RandAugment(2, 9), label
                  smoothing 0.1, 91 epochs. Published top-1 at 224 px: B/32 76.5, B/16 81.2, L/14 83.9.
Not run here. Dictionaries are not decayed, the cosine ends at 1e-6 and Adam's first moment is kept in bfloat16, as released.
Differences: mixup's λ ~ Beta(0.8, 0.8), CutMix's box and the choice between the two are drawn once per batch, released once
per device, and images are mixed with their neighbour in the batch, released with the one at the mirrored place; released
labels of fine-tuning are 0.9 and 0.0001, which sum to 0.9999, ours to 1; released fine-tuning starts with a new patch
embedding as well as a new head, ours with a new head; released test images are reduced by the mean over the area, ours by
an antialiased bilinear filter. docs/recipes.md has every setting beside theirs.
"""

import dataclasses
from functools import partial

from crate_jax import models
from crate_jax.runs import recipes
from crate_jax.runs.config import Config, choose, epochs
from crate_jax.runs.optimizers import AdamW


def digits() -> Config:
    return recipes.digits(
        models.CRATEAlphaConfig(
            image_size=8, patch_size=4, channels=1, num_classes=10, dim=54, depth=6, heads=3
        )
    )


def cifar10() -> Config:
    return recipes.cifar10(
        models.crate_alpha("tiny", image_size=32, patch_size=4, num_classes=10),
        optimizer=AdamW(lr=1e-3, weight_decay=0.1, b1=0.9, b2=0.95, clip_norm=1.0),
    )


def cifar10_tiny() -> Config:
    return recipes.cifar10_tiny(models.CRATEAlphaConfig(**recipes.TINY, dim=55, heads=5))


def cifar10_medium() -> Config:
    return recipes.cifar10_medium(models.CRATEAlphaConfig(**recipes.MEDIUM, dim=105, heads=3))


def imagenet21k(size: str) -> Config:
    return recipes.imagenet(
        models.crate_alpha(size, num_classes=19167, remat="dots"),
        batch_size=4096,
        label_smoothing=0.0,
        total=epochs(91),
        warmup=epochs(10),
        trace=None,
        data=recipes.imagenet_data(name="array_record:data/imagenet21k", mixup=0.8, cutmix=1.0),
        optimizer=AdamW(
            lr=8e-4,
            end_lr=1e-6,
            weight_decay=0.1,
            decay="matrices but dictionaries",
            b1=0.9,
            b2=0.95,
            momentum_dtype="bfloat16",
            clip_norm=1.0,
        ),
    )


def finetune(size: str) -> Config:
    config = imagenet21k(size)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, num_classes=1000),
        label_smoothing=0.1,
        data=dataclasses.replace(config.data, name="array_record:data/imagenet", randaugment_timm=(2, 9)),
        optimizer=dataclasses.replace(config.optimizer, lr=1.6e-4),
        init_from=f"runs/crate-alpha-{size}",
    )


def get_config(variant="digits"):
    sizes = {size: partial(imagenet21k, size) for size in ("tiny", "small", "base", "large", "huge")}
    tuned = {f"{size}_finetune": partial(finetune, size) for size in ("base", "large")}
    cifar = {"cifar10": cifar10, "cifar10_tiny": cifar10_tiny, "cifar10_medium": cifar10_medium}
    return choose(variant, {"digits": digits, **cifar, **sizes, **tuned})
