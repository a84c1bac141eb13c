"""SimDINO: a model teaches itself from crops of unlabelled images; the coding rate keeps its features apart.

    python -m crate_jax.train --config=configs/simdino.py --workdir=runs/simdino
    python -m crate_jax.probe --workdir=runs/simdino

The default is a small CRATE on scikit-learn's digits, offline; the probe reads the teacher, the moving average. Hardware:
2 CPU cores, two minutes. Measured on 360 held-out images, which did not choose the layer: linear probe 84.4 %, untrained
66.9 %; nearest neighbours 84.7 and 63.3 %.

Variants (--config=configs/simdino.py:VARIANT):
    vit       the same with the black box, a ViT of the same width, depth and heads
    imagenet  ViT-B/16 on ImageNet-1K for 100 epochs, after the released command of arXiv 2502.10385: 10 local views of 96 px
              beside two of 224, bicubic, batch 512, AdamW, lr 1e-3 to 1e-6, 10 epochs of warm-up, weight decay 0.04 to
              0.4, each parameter's gradient clipped to 3, ε² 0.05, the teacher's momentum 0.996 to 1. As released on eight
              GPUs, the coding rate is the mean of the rates of an eighth of the batch each (simdino.groups); for random unit
              vectors that of the whole batch is 4.9 times as large. Published: k-NN 74.9 %, linear 77.3 %; 1.5 days on eight
              GPUs of 40 GB. Not run here. Data: ImageNet as crate_jax.prepare writes it (docs/data.md).
    imagenet_crate
              CRATE-B in its place

Differences: no stochastic depth (0.1 there) and no change of hue; brightness, contrast and saturation change in this order,
there in a random one; the rate reaches its highest value one step later; float16 there. docs/recipes.md has every setting
beside theirs.
"""

import dataclasses

from crate_jax import models
from crate_jax.runs import recipes
from crate_jax.runs.config import (
    Config,
    DataConfig,
    SimDINOConfig,
    choose,
    epochs,
    percent,
)
from crate_jax.runs.optimizers import AdamW


def digits() -> Config:
    return Config(
        model=models.CRATEConfig(
            image_size=8,
            patch_size=2,
            channels=1,
            num_classes=32,
            head_hidden=128,
            pool="mean",
            dim=16,
            depth=6,
            heads=2,
            head_dim=8,
        ),
        task="simdino",
        batch_size=64,
        ema_decay=0.99,
        ema_decay_end=1.0,
        total=epochs(180),
        data=DataConfig(name="digits"),
        optimizer=AdamW(lr=4e-3, weight_decay=0.04, b1=0.9, b2=0.999, clip_norm=3.0),
        # Two views of half the image or more: a local one of 8×8 pixels is a few strokes.
        simdino=SimDINOConfig(local_views=0, global_scale=(0.5, 1.0), flip=False, eps_sq=0.5),
    )


def black_box(config: Config, **sizes) -> Config:
    """The configuration with a ViT in place of the CRATE."""
    shared = {field.name for field in dataclasses.fields(models.ImageConfig)} - {"family"}
    values = {name: getattr(config.model, name) for name in shared}
    return dataclasses.replace(config, model=models.ViTConfig(**{**values, **sizes}))


def imagenet_crate() -> Config:
    return Config(
        model=models.crate("base", num_classes=256, head_hidden=2048),
        task="simdino",
        batch_size=512,
        ema_decay=0.996,
        ema_decay_end=1.0,
        total=epochs(100),
        warmup=epochs(10),
        log=percent(0.1),
        eval=epochs(5),
        checkpoint=epochs(1),
        trace=epochs(10),
        # The views are the augmentation.
        data=recipes.imagenet_data(eval_resize=None, crop_scale=(), flip=False),
        optimizer=AdamW(
            lr=1e-3,
            end_lr=1e-6,
            weight_decay=0.04,
            weight_decay_end=0.4,
            decay="matrices and tokens",
            clip_parameter_norm=3.0,
        ),
        simdino=SimDINOConfig(local_views=10, local_size=96, whole_image=True, groups=8),
    )


def get_config(variant="digits"):
    return choose(
        variant,
        {
            "digits": digits,
            "vit": lambda: black_box(digits()),
            "imagenet": lambda: black_box(imagenet_crate()),
            "imagenet_crate": imagenet_crate,
        },
    )
