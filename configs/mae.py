"""CRATE-MAE: a white-box autoencoder that learns from images with three quarters of their patches hidden.

    python -m crate_jax.train --config=configs/mae.py --workdir=runs/mae
    python -m crate_jax.probe --workdir=runs/mae

The default learns from scikit-learn's digits, 16 patches of 2×2, offline, on a CPU. The first command ends with the error
beside those of the mean patch and of the nearest visible one, and draws `report/reconstruction.png`. Measured: 0.402 against
0.424 and 1.136; linear probe 69.7 % (untrained 58.3), k-NN 69.7 % (untrained 57.5).

Variants (--config=configs/mae.py:VARIANT):
    autoencoder   a smaller encoder and decoder (8 wide, 2 + 2 layers) with nothing hidden: a digit, one patch, through eight
                  numbers. Measured: linear probe 84.2 % (untrained 65.6), k-NN 86.9 % (untrained 75.6)
    cifar10       CIFAR-10 at patch 4, for one GPU; tfds:cifar10 or --config.data.name=folder:PATH
    tiny | small | base | large
                  ImageNet-1K for 800 epochs as in the paper (arXiv 2404.02446): AdamW, lr 3e-5, weight decay 0.1, batch
                  4096, 40 epochs of warm-up, 75 % hidden. Small and base are 25.4M and 44.6M parameters; the paper's
                  linear probes on CIFAR-10 are 79.4 and 80.9 %. Data: ImageNet as crate_jax.prepare writes it
                  (docs/data.md). Not run here.

Differences: no training code is released. Where the paper is silent ours follow MAE's code: Adam's (0.9, 0.95), bicubic
Inception crops of a fifth of the image or more, flips. The authors' book cuts 224 px at random from a short side of 256 and
speaks of blur and solarisation too, and of a "base" learning rate to which the warm-up rises; in MAE's code a base rate is
multiplied by batch size/256, which would be 4.8e-4. MAE's code decays class and mask tokens, ours does not. docs/recipes.md
has every setting beside theirs.
"""

import dataclasses
from functools import partial

from crate_jax import models
from crate_jax.runs import recipes
from crate_jax.runs.config import Config, DataConfig, choose, epochs, percent
from crate_jax.runs.optimizers import AdamW


def digits() -> Config:
    return Config(
        model=models.CRATEMAEConfig(
            image_size=8, patch_size=2, channels=1, dim=16, depth=4, heads=2, head_dim=8, penalty=0.1
        ),
        task="masked_autoencoder",
        batch_size=64,
        total=epochs(180),
        data=DataConfig(name="digits", shift=0.75),
        optimizer=AdamW(lr=5e-3, weight_decay=0.05, b1=0.9, b2=0.95),
    )


def autoencoder() -> Config:
    """A whole digit is one patch that becomes eight numbers: of several patches each could be copied by a token as wide."""
    config = digits()
    model = dataclasses.replace(
        config.model, patch_size=8, dim=8, heads=2, head_dim=4, depth=2, mask_ratio=0.0
    )
    optimizer = dataclasses.replace(config.optimizer, lr=1e-2)
    return dataclasses.replace(config, task="autoencoder", model=model, optimizer=optimizer)


def cifar10() -> Config:
    return Config(
        model=models.crate_mae("tiny", image_size=32, patch_size=4),
        task="masked_autoencoder",
        batch_size=256,
        total=epochs(400),
        warmup=epochs(20),
        log=percent(0.1),
        data=recipes.cifar10_data(),
        optimizer=AdamW(lr=1e-3, weight_decay=0.05, b1=0.9, b2=0.95),
    )


def imagenet(size: str) -> Config:
    return Config(
        model=models.crate_mae(size),
        task="masked_autoencoder",
        batch_size=4096,
        total=epochs(800),
        warmup=epochs(40),
        log=percent(0.1),
        eval=epochs(20),
        checkpoint=epochs(1),
        trace=epochs(20),
        data=recipes.imagenet_data(crop_scale=(0.2, 1.0), interpolation="bicubic"),
        optimizer=AdamW(lr=3e-5, weight_decay=0.1, b1=0.9, b2=0.95),
    )


def get_config(variant="digits"):
    sizes = {size: partial(imagenet, size) for size in ("tiny", "small", "base", "large")}
    return choose(variant, {"digits": digits, "autoencoder": autoencoder, "cifar10": cifar10, **sizes})
