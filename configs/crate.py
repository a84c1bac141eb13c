"""CRATE, supervised, on real images.

    python -m crate_jax.train --config=configs/crate.py:VARIANT --workdir=runs/crate-VARIANT

Variants:
  cifar10   CRATE-Tiny's width at patch 4 on 32×32 images (64 tokens), 100 epochs. Data: tfds:cifar10, or
            --config.data.name=folder:PATH with train/CLASS/* and test/CLASS/*. One GPU; a 2-core CPU makes some
            tens of images a second, enough to see it learn.
  cifar10_small
            125,002 parameters and ten epochs, for a CPU: half an hour on one core. configs/vit.py has its equal;
            docs/results.md has accuracy and curves of both.
  cifar10_tiny
            134,506 parameters on patches of 8 pixels and six epochs, for minutes of one core. configs/crate_alpha.py,
            tost.py and vit.py have networks of as many parameters, give or take 1 %, with the same recipe; docs/results.md
            compares them over three seeds.
  cifar10_medium
            694,186 parameters and twenty epochs with batches of 512, for minutes of a GPU; its equals in the same three
            files are within 2.5 %. Not run here.
  tiny | small | base | large
            ImageNet-1K as in the paper (arXiv 2306.01129, appendix B.1.2): Lion, lr 2.4e-4, weight decay 0.5,
            batch 2048, 150 epochs, 5 of warm-up, label smoothing 0.1, random crop and flip.
            Published top-1: 66.7, 69.2, 70.8, 71.3; with ReaL labels 74.0, 76.0, 76.5, 77.4.
            The authors report about 240 s an epoch for base on 16 A100-40GB.
  released_tiny | released_small | released_base | released_large
            The example in the README of the authors' code: Lion, lr 2e-4, weight decay 0.05 on all parameters, batch 512,
            200 epochs, the rate changed once per epoch, from lr/20. No accuracy is published for it. The defaults of the
            code itself are others (AdamW, lr 4e-4, weight decay 0.1, batch 256, 90 epochs).

Differences. The paper does not say what is decayed and how Lion's momentum decays: ours follow its code, all parameters and
(0.9, 0.99). The authors train in float16 with loss scaling; ours in bfloat16 on accelerators. Their last batch of an epoch
is smaller; ours are all full. docs/recipes.md has every setting beside theirs.

Theory switches are fields of the model (docs/models.md): --config.model.output=tied, --config.model.ista=orthogonal. Tied
keeps the softmax's scale p^-1/2 of the released code, where the derivation (eq. 11 and 12) has 1. The study trains 16
variants with three seeds each, on CIFAR-10:

    python -m crate_jax.study --config=configs/crate.py:ablation --workdir=runs/ablation --config.data.name=folder:PATH

ImageNet is prepared once, and read from array_record from then on (docs/data.md):

    python -m crate_jax.prepare --input=folder:PATH --output=data/imagenet
    python -m crate_jax.train --config=configs/crate.py:base --workdir=runs/crate-base
    python -m crate_jax.evaluate --workdir=runs/crate-base --real_labels=real.json

The ImageNet variants were not run here. Images are cropped and evaluated as in the papers: Inception crop to 224 px; short
side 256, centre 224 px.
"""

import dataclasses
from functools import partial

from crate_jax import models
from crate_jax.runs import recipes
from crate_jax.runs.config import (
    Config,
    Duration,
    RegularizerConfig,
    choose,
    epochs,
    percent,
)
from crate_jax.runs.optimizers import Lion
from crate_jax.runs.studies import Study, variants


def cifar10() -> Config:
    return recipes.cifar10(models.crate("tiny", image_size=32, patch_size=4, num_classes=10))


def cifar10_small() -> Config:
    return recipes.cifar10_small(models.CRATEConfig(**SMALL, head_dim=24))


def cifar10_tiny() -> Config:
    return recipes.cifar10_tiny(models.CRATEConfig(**recipes.TINY, dim=96, heads=4, head_dim=24))


def cifar10_medium() -> Config:
    return recipes.cifar10_medium(models.CRATEConfig(**recipes.MEDIUM, dim=192, heads=6, head_dim=32))


def imagenet(size: str) -> Config:
    return recipes.imagenet(models.crate(size))


def released(size: str) -> Config:
    return dataclasses.replace(
        imagenet(size),
        batch_size=512,
        total=epochs(200),
        # min((e + 1)/20, cosine) at epoch e: 1/20 at the first, 1 at the twentieth.
        warmup=epochs(19),
        optimizer=Lion(lr=2e-4, start_lr=1e-5, schedule="epochs", weight_decay=0.05, decay="all"),
    )


# The ablation's networks have this shape, 125,002 parameters, or about as many in another; those without an output matrix
# (tied, its updates, transposed, identity) have 87,754. A fixed one is counted, though it is never trained.
SMALL = {**recipes.SMALL, "dim": 96, "heads": 4}

# name: the model, or what is changed of the released one.
ABLATION = {
    "released": {},
    "tied": {"output": "tied"},
    "tied-negative": {"output": "tied", "update": "negative"},
    "tied-derived": {"output": "tied", "update": "derived", "compression_step": 0.5},
    "transposed": {"output": "transposed"},
    "fixed": {"output": "fixed"},
    "identity": {"output": "identity"},
    "linear": {"attention": "linear"},
    "eq92": {"ista": "orthogonal"},
    "unrolled": {"ista": "unrolled"},
    "learned-steps": {"learn_steps": True},
    "orthogonality": {"orthogonality": 0.1},
    "srr": {"sparse_rate_reduction": 0.01},
    "alpha": models.CRATEAlphaConfig(**{**SMALL, "dim": 54, "heads": 3}),
    "tost": models.ToSTConfig(**{**SMALL, "dim": 52, "mlp_ratio": 4.35}),
    "vit": models.ViTConfig(**{**SMALL, "dim": 48, "mlp_ratio": 4.3}),
}


def ablation(name: str, seed: int) -> Config:
    """One run of the ablation: a small CRATE, or a network of as many parameters, on 12,800 images of CIFAR-10."""
    change = ABLATION[name]
    model, regularizer = change, RegularizerConfig()
    if isinstance(change, dict):
        terms = {key: value for key, value in change.items() if hasattr(regularizer, key)}
        regularizer = dataclasses.replace(regularizer, **terms)
        fields = {key: value for key, value in change.items() if key not in terms}
        model = models.CRATEConfig(**SMALL, head_dim=24, **fields)
    return recipes.cifar10_small(
        model,
        seed=seed,
        total=Duration(12_800, "examples"),
        log=percent(5),
        eval=None,
        checkpoint=percent(100),
        trace=None,
        data=recipes.cifar10_data(name="folder:data/cifar10", crop_padding=0),
        regularizer=regularizer,
    )


# python -m crate_jax.study trains every run.
STUDIES = {
    "ablation": Study(
        {f"{name}-{seed}": partial(ablation, name, seed) for seed in range(3) for name in ABLATION},
        analysis="crate_jax.analysis.ablation",
    )
}


def get_config(variant="cifar10"):
    names = ("tiny", "small", "base", "large")
    sizes = {size: partial(imagenet, size) for size in names}
    sizes |= {f"released_{size}": partial(released, size) for size in names}
    cifar = {
        "cifar10": cifar10,
        "cifar10_small": cifar10_small,
        "cifar10_tiny": cifar10_tiny,
        "cifar10_medium": cifar10_medium,
    }
    return choose(variant, {**cifar, **sizes, **variants(STUDIES)})
