"""CRATE, pre-trained on ImageNet-1K, fine-tuned on smaller datasets.

    python -m crate_jax.train --config=configs/finetune.py:cifar10_base --workdir=runs/cifar10-base

It starts from the run --config.init_from=WORKDIR, by default runs/crate-SIZE as configs/crate.py:SIZE makes it, or as the
released weights become it:

    python -m crate_jax.convert --input=crate_b.pth --output=runs/crate-base

The classification head for other classes is new, positions of another grid of patches are interpolated.

Published top-1 (arXiv 2306.01129, table 1) of each variant:

                     tiny                  small                  base                  large
    CIFAR-10         cifar10_tiny 95.5     cifar10_small 96.0     cifar10_base 96.8     cifar10_large 97.2
    CIFAR-100        cifar100_tiny 78.9    cifar100_small 81.0    cifar100_base 82.7    cifar100_large 83.6
    Oxford Flowers   flowers_tiny 84.6     flowers_small 87.1     flowers_base 88.7     flowers_large 88.3
    Oxford Pets      pets_tiny 81.4        pets_small 84.9        pets_base 85.3        pets_large 87.4

Recipe of the paper (appendix B.1.2): AdamW, lr 5e-5, weight decay 0.01, batch 512; images resized to 224 px, random crop,
flip, RandAugment(2, 14). Where it is silent it is as in the authors' finetune.py: Inception crops, test images stretched to
224×224, no label smoothing, no warm-up, all parameters decayed, the rate changed once per epoch; 200 epochs on CIFAR as in
the example of their README, which has batch 256, and 400 elsewhere, the default. Other defaults there are lr 1e-4 and batch
50:

    --config.optimizer.lr=1e-4 --config.batch_size=50

Differences: the cosine of finetune.py lags two epochs behind; it trains in float16 with loss scaling, ours in bfloat16 on
accelerators. docs/recipes.md has every setting beside theirs.

Hardware: one 80 GB GPU for base; accumulate=4 where memory is short. Not run here.
"""

from functools import partial

from crate_jax import models
from crate_jax.runs import recipes
from crate_jax.runs.config import Config, choose, epochs, percent
from crate_jax.runs.optimizers import AdamW

# Dataset: TFDS name, training split, classes, epochs. TFDS's "train" of the pets is their trainval.
DATASETS = {
    "cifar10": ("cifar10", "train", 10, 200),
    "cifar100": ("cifar100", "train", 100, 200),
    "flowers": ("oxford_flowers102", "train", 102, 400),
    "pets": ("oxford_iiit_pet", "train", 37, 400),
}
SIZES = ("tiny", "small", "base", "large")


def finetune(dataset: str, size: str) -> Config:
    name, split, num_classes, length = DATASETS[dataset]
    return Config(
        model=models.crate(size, num_classes=num_classes),
        batch_size=512,
        label_smoothing=0.0,
        total=epochs(length),
        warmup=None,
        log=percent(0.5),
        eval=percent(5),
        checkpoint=percent(5),
        trace=percent(20),
        data=recipes.imagenet_data(
            name=f"tfds:{name}",
            train_split=split,
            eval_resize=None,
            stretch=True,
            randaugment=(2, 14),
        ),
        optimizer=AdamW(lr=5e-5, schedule="epochs", weight_decay=0.01, decay="all"),
        init_from=f"runs/crate-{size}",
    )


def get_config(variant="cifar10_base"):
    return choose(variant, {f"{d}_{s}": partial(finetune, d, s) for d in DATASETS for s in SIZES})
