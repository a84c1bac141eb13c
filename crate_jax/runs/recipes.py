"""What several configurations share: the datasets as their models see them, and the schedules of supervised training.

A file in `configs/` starts from one of these and names what is its own.
"""

import dataclasses
from typing import Any

from crate_jax.runs.config import Config, DataConfig, epochs, percent
from crate_jax.runs.optimizers import AdamW, Lion

# Means and standard deviations of the channels, of pixel values scaled to [0, 1].
_CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def cifar10_data(**changes) -> DataConfig:
    """CIFAR-10: 32 px, flipped, cropped at random after padding by 4 px. `changes` are fields of `DataConfig`."""
    data = DataConfig("tfds:cifar10", image_size=32, channels=3, **_CIFAR10, flip=True, crop_padding=4)
    return dataclasses.replace(data, **changes)


def imagenet_data(**changes) -> DataConfig:
    """ImageNet-1K from array_record: Inception crops to 224 px, flipped; evaluated on the centre 224 px of 256.

    `changes` are fields of `DataConfig`.
    """
    data = DataConfig(
        "array_record:data/imagenet",
        image_size=224,
        channels=3,
        **_IMAGENET,
        eval_resize=256,
        crop_scale=(0.08, 1.0),
        flip=True,
    )
    return dataclasses.replace(data, **changes)


def digits(model: Any, **changes) -> Config:
    """scikit-learn's digits for 120 epochs with Lion. `changes` are fields of `Config`."""
    config = Config(
        model=model,
        batch_size=64,
        total=epochs(120),
        data=DataConfig("digits", shift=0.75),
        optimizer=Lion(lr=5e-4, weight_decay=0.05, clip_norm=1.0),
    )
    return dataclasses.replace(config, **changes)


def cifar10(model: Any, **changes) -> Config:
    """CIFAR-10 for 100 epochs with Lion. `changes` are fields of `Config`."""
    config = Config(
        model=model,
        batch_size=128,
        total=epochs(100),
        warmup=epochs(5),
        log=percent(0.1),
        eval=epochs(5),
        checkpoint=epochs(5),
        trace=epochs(5),
        data=cifar10_data(),
        optimizer=Lion(lr=2e-4, weight_decay=0.5, clip_norm=1.0),
    )
    return dataclasses.replace(config, **changes)


# Shape of the networks that `cifar10_small` compares.
SMALL = {"image_size": 32, "patch_size": 4, "num_classes": 10, "depth": 4}


def cifar10_small(model: Any, **changes) -> Config:
    """CIFAR-10 for ten epochs with AdamW, for networks of 125,000 parameters on a CPU. `changes` are fields of `Config`."""
    config = cifar10(
        model,
        batch_size=64,
        total=epochs(10),
        warmup=percent(10),
        eval=epochs(1),
        checkpoint=epochs(1),
        trace=epochs(1),
        optimizer=AdamW(lr=2e-3, weight_decay=0.05, b2=0.98, clip_norm=1.0),
    )
    return dataclasses.replace(config, **changes)


# Shape of the networks that `cifar10_tiny` compares: four times fewer tokens.
TINY = {**SMALL, "patch_size": 8}


def cifar10_tiny(model: Any, **changes) -> Config:
    """CIFAR-10 for six epochs with the recipe of `cifar10_small`, for networks of 134,000 parameters that read 16 patches:
    minutes of one core. `changes` are fields of `Config`.
    """
    return cifar10_small(model, **{"total": epochs(6), "trace": None, **changes})


# Shape of the networks that `cifar10_medium` compares.
MEDIUM = {"image_size": 32, "patch_size": 4, "num_classes": 10, "depth": 6}


def cifar10_medium(model: Any, **changes) -> Config:
    """CIFAR-10 for twenty epochs with AdamW, for networks of 680,000 parameters on a GPU. `changes` are fields of
    `Config`.
    """
    return cifar10_small(
        model,
        **{
            "batch_size": 512,
            "total": epochs(20),
            "checkpoint": epochs(5),
            "trace": None,
            **changes,
        },
    )


def imagenet(model: Any, **changes) -> Config:
    """ImageNet-1K for 150 epochs with Lion, batch 2048 (arXiv 2306.01129, appendix B.1.2). What is decayed, which the paper
    does not say, is as in the authors' code. `changes` are fields of `Config`.
    """
    config = Config(
        model=model,
        batch_size=2048,
        label_smoothing=0.1,
        total=epochs(150),
        warmup=epochs(5),
        log=percent(0.1),
        eval=epochs(1),
        checkpoint=epochs(1),
        trace=epochs(5),
        data=imagenet_data(),
        optimizer=Lion(lr=2.4e-4, weight_decay=0.5, decay="all"),
    )
    return dataclasses.replace(config, **changes)
