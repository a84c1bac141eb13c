"""ToST: token statistics in place of attention, linear in the tokens. Default: scikit-learn's digits, offline.

    python -m crate_jax.train --config=configs/tost.py --workdir=runs/tost

Hardware: 2 CPU cores, two minutes. Measured: 93.1 % of the 360 held-out images.

Variants (--config=configs/tost.py:VARIANT):
    cifar10     CIFAR-10 at patch 2 (256 tokens), for one GPU: tfds:cifar10 or --config.data.name=folder:PATH
    tiny | small | medium
                ImageNet-1K for 400 epochs as released with the paper (arXiv 2412.17810): AdamW, lr 1e-3 for batch 1024,
                weight decay 0.05, 5 epochs of warm-up, RandAugment, mixup, CutMix, random erasing. Published top-1 of the
                released classifiers, whose patch embedding and pooling are others (see `models.ToST`): 67.3, 77.9, 80.3.
                Data: ImageNet as crate_jax.prepare writes it (docs/data.md). Not run here; ours drop no layers at random.
"""

from functools import partial

from crate_jax import models
from crate_jax.training.config import Config, DataConfig, OptimizerConfig, choose, epochs, percent


def digits() -> Config:
    return Config(
        model=models.ToSTConfig(
            image_size=8, patch_size=2, channels=1, num_classes=10, dim=48, depth=6, heads=4
        ),
        batch_size=64,
        total=epochs(60),
        data=DataConfig(name="digits", shift=0.75),
        optimizer=OptimizerConfig(name="adamw", lr=2e-3, weight_decay=0.05, clip_norm=1.0),
    )


def cifar10() -> Config:
    return Config(
        model=models.tost("tiny", image_size=32, patch_size=2, num_classes=10),
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
        optimizer=OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.05, b2=0.999, clip_norm=1.0),
    )


def imagenet(size: str) -> Config:
    return Config(
        model=models.tost(size),
        batch_size=1024,
        label_smoothing=0.1,
        total=epochs(400),
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
            crop_scale=(0.08, 1.0),
            eval_resize=224,
            flip=True,
            randaugment=(2, 9),
            mixup=0.8,
            cutmix=1.0,
            erase=0.25,
        ),
        optimizer=OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.05, b2=0.999),
    )


def get_config(variant="digits"):
    sizes = {size: partial(imagenet, size) for size in ("tiny", "small", "medium")}
    return choose(variant, {"digits": digits, "cifar10": cifar10, **sizes})
