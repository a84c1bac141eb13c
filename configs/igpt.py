"""iGPT: a transformer that predicts the next pixel. Default: scikit-learn's digits, 64 pixels of 17 grey levels, offline.

    python -m crate_jax.train --config=configs/igpt.py --workdir=runs/igpt
    python -m crate_jax.sample --workdir=runs/igpt
    python -m crate_jax.sample --workdir=runs/igpt --mode=complete

Hardware: 2 CPU cores, 3 minutes of processor time. Measured: 1.312 nats a pixel, 1.893 bits, on the 360 test images; their
order-0 entropy is 2.976 bits a pixel, LZMA takes 2.859, zlib 3.174, one PNG of all 3.608.

Variants (--config=configs/igpt.py:VARIANT):
    crate                 the same task with CRATE-GPT blocks (causal MSSA, ISTA)
    bert, crate_bert      masked pixels instead of the next one; the loss is in nats a masked pixel
    channels              the bytes of CIFAR-10, red, green and blue of each pixel in turn, in windows of two rows of pixels,
                          to compress images without loss (docs/codec.md). Measured on a JPEG copy: 4.090 bits per channel in
                          11 minutes of processor time. channels_crate its CRATE-GPT twin: 5.039. Other images:
                          --config.data.name=pixels:NAME
    cifar10               CIFAR-10 from scratch, 512 colours, a model for one GPU; cifar10_crate its CRATE-GPT twin
    cifar10_small         1,837,312 parameters on CIFAR-10 for three epochs, minutes of a GPU; cifar10_small_bert the same
                          with masked pixels. Not run here
    imagenet32_s|m|l      Chen et al. 2020 on ImageNet at 32×32, and imagenet32_crate, a CRATE-GPT of S's width and depth
    imagenet48_l          the same at 48×48, 2,304 tokens, from ImageNet prepared by crate_jax.prepare (docs/data.md)
    imagenet64_xl         the same at 64×64 with 6.8 billion parameters
    cifar10_finetune      the joint loss that took the paper's iGPT-L to 99.0 % on CIFAR-10; starts from
                          --config.init_from=WORKDIR, of imagenet32_l by default; with --config.data.labels_per_class=N it
                          sees N labels of each class

Study: three sizes, each trained for 2, 6 and 20 epochs, probed, and drawn together (27 minutes on 2 busy CPU cores):

    python -m crate_jax.study --config=configs/igpt.py:scaling --workdir=runs/scaling

The paper's schedule: Adam(0.9, 0.95), batch 128 for 1M iterations (XL 64 for 2M), one epoch of warm-up, cosine to zero, no
weight decay, no dropout. It prints test losses of 2.0895, 2.0614 and 2.0466 nats a token for S, M and L.

Differences: the paper crops ImageNet at random before it is made small; ours reads images that are small already, or at
48×48 the centre square. It holds 4 % of the training images out, ours the validation images. It does not print the learning
rate of M (ours is that of S), nor that of fine-tuning, which is ours as are its length and augmentation; it stops
fine-tuning at the best validation accuracy, which here is the checkpoint that is kept as the best. docs/recipes.md has
every setting beside theirs.
"""

import dataclasses
from functools import partial

from crate_jax import models
from crate_jax.runs.config import (
    Config,
    DataConfig,
    MeshConfig,
    choose,
    epochs,
    percent,
    steps,
)
from crate_jax.runs.optimizers import AdamW
from crate_jax.runs.studies import Study, variants


def digits() -> Config:
    return Config(
        model=models.IGPTConfig(num_positions=64, dim=64, depth=6, heads=4),
        task="autoregressive",
        batch_size=32,
        label_smoothing=0.0,
        total=epochs(20),
        data=DataConfig(name="digits"),
        optimizer=AdamW(lr=2e-3, weight_decay=0.1, b1=0.9, b2=0.95),
    )


def crate(config: Config) -> Config:
    """The twin of a configuration: same task, width, depth and heads, with CRATE's blocks."""
    model = config.model
    shared = {field.name: getattr(model, field.name) for field in dataclasses.fields(models.TokenConfig)}
    twin = models.CRATEGPTConfig(**{**shared, "family": "crate_gpt"}, head_dim=model.head_dim)
    return dataclasses.replace(config, model=twin)


def bert(config: Config) -> Config:
    """Masked pixels: every position sees all others."""
    return dataclasses.replace(config, task="bert", model=dataclasses.replace(config.model, causal=False))


def paper(
    model: models.IGPTConfig, lr: float, *, data: str, batch_size: int = 128, total: int = 10**6
) -> Config:
    return Config(
        model=model,
        task="autoregressive",
        batch_size=batch_size,
        label_smoothing=0.0,
        total=steps(total),
        warmup=epochs(1),
        data=DataConfig(name=data),
        optimizer=AdamW(lr=lr, weight_decay=0.0, b1=0.9, b2=0.95),
        mesh=MeshConfig("fsdp") if model.dim > 1024 else MeshConfig(),
    )


def imagenet32(size: str, lr: float, **model) -> Config:
    return paper(models.igpt(size, **model), lr, data="tfds:imagenet_resized/32x32")


def imagenet48_l() -> Config:
    model = models.igpt("l", num_positions=48**2, remat="full")
    config = paper(model, 1e-2, data="array_record:data/imagenet")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=48, channels=3))


def imagenet64_xl() -> Config:
    model = models.igpt("xl", num_positions=4096, remat="full")
    return paper(model, 3e-4, data="tfds:imagenet_resized/64x64", batch_size=64, total=2 * 10**6)


def channels() -> Config:
    """Two rows of 32 pixels: a byte sees the pixel to its left and the one above. For some minutes of two cores."""
    return Config(
        model=models.IGPTConfig(vocab_size=256, num_positions=192, dim=48, depth=2, heads=3),
        task="autoregressive",
        batch_size=16,
        label_smoothing=0.0,
        total=steps(4000),
        data=DataConfig(name="pixels:tfds:cifar10"),
        optimizer=AdamW(lr=3e-3, weight_decay=0.1, b1=0.9, b2=0.95, clip_norm=1.0),
    )


def channels_crate() -> Config:
    """Its twin of as many products per byte: CRATE's layer has 3 d² of them, a transformer's 12 d²."""
    model = models.CRATEGPTConfig(vocab_size=256, num_positions=192, dim=96, depth=2, heads=3, head_dim=32)
    return dataclasses.replace(channels(), model=model)


def cifar10() -> Config:
    config = paper(models.IGPTConfig(dim=256, depth=12, heads=8), 1e-3, data="tfds:cifar10")
    data = dataclasses.replace(config.data, flip=True)
    return dataclasses.replace(config, total=epochs(50), warmup=percent(5), data=data)


def cifar10_small() -> Config:
    config = paper(models.IGPTConfig(dim=128, depth=8, heads=4), 2e-3, data="tfds:cifar10", batch_size=64)
    data = dataclasses.replace(config.data, flip=True)
    each = epochs(1)
    return dataclasses.replace(
        config, total=epochs(3), warmup=percent(5), eval=each, checkpoint=each, trace=None, data=data
    )


def cifar10_finetune() -> Config:
    config = paper(models.igpt("l", num_classes=10, remat="dots"), 1e-4, data="tfds:cifar10")
    return dataclasses.replace(
        config,
        task="joint",
        total=epochs(50),
        data=dataclasses.replace(config.data, flip=True, crop_padding=4),
        init_from="runs/igpt-imagenet32_l",
    )


def scaling(dim: int, depth: int, length: float) -> Config:
    """One model of the scaling study: the default task at another width, depth and number of epochs.

    The test set is read twice an epoch, so that the curves show the first pass, in which no image was seen before.
    """
    config = digits()
    model = dataclasses.replace(config.model, dim=dim, depth=depth, heads=dim // 16)
    return dataclasses.replace(config, model=model, total=epochs(length), eval=epochs(0.5))


# python -m crate_jax.study trains and probes every run.
STUDIES = {
    "scaling": Study(
        {
            f"{dim}x{depth}-{length}": partial(scaling, dim, depth, length)
            for dim, depth in ((16, 2), (32, 4), (64, 6))
            for length in (2, 6, 20)
        },
        analysis="crate_jax.analysis.scaling",
    )
}


def get_config(variant="digits"):
    return choose(
        variant,
        {
            "digits": digits,
            "crate": lambda: crate(digits()),
            "bert": lambda: bert(digits()),
            "crate_bert": lambda: bert(crate(digits())),
            "channels": channels,
            "channels_crate": channels_crate,
            "cifar10": cifar10,
            "cifar10_crate": lambda: crate(cifar10()),
            "cifar10_small": cifar10_small,
            "cifar10_small_bert": lambda: bert(cifar10_small()),
            "cifar10_finetune": cifar10_finetune,
            "imagenet32_s": lambda: imagenet32("s", 3e-3),
            "imagenet32_m": lambda: imagenet32("m", 3e-3, remat="dots"),
            "imagenet32_l": lambda: imagenet32("l", 1e-3, remat="dots"),
            "imagenet32_crate": lambda: crate(imagenet32("s", 3e-3)),
            "imagenet48_l": imagenet48_l,
            "imagenet64_xl": imagenet64_xl,
            **variants(STUDIES),
        },
    )
