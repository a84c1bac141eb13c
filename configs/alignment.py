"""Models of three families and three sizes on the digits: do their representations converge?

    python -m crate_jax.study --config=configs/alignment.py:convergence --workdir=runs/convergence
    python -m crate_jax.study --config=configs/alignment.py:pressures --workdir=runs/pressures

Each study trains its models, ten seconds of processor time for most, and compares their layers: alignment against a
linear probe, against transfer to printed letters, before and after training, with what chance gives.
docs/alignment-worlds.md has the table and the verdict.

    convergence   18 runs, FAMILY-SIZE-SEED: crate and vit (classes of digits) and igpt (next pixels), two seeds of each;
                  sizes 16x2, 32x3 and 64x4 are widths and layers
    pressures     8 runs of size 32x3: FAMILY-few (ten labelled examples of each class), FAMILY-undecayed and FAMILY-decayed
                  (no weight decay, ten times as much), igpt-joint (next pixels and classes), igpt-masked (hidden pixels)

The default of this file is crate-32x3-0 of the first study, a minute on a CPU. These are not the papers' models: the
smallest has two thousand parameters, the largest two hundred thousand, and every one sees 1,437 images.
"""

import dataclasses
from functools import partial

from crate_jax import models
from crate_jax.runs import recipes
from crate_jax.runs.config import Config, DataConfig, choose, epochs, percent
from crate_jax.runs.optimizers import AdamW
from crate_jax.runs.studies import Study, variants

# width, layers, heads
SIZES = {"16x2": (16, 2, 2), "32x3": (32, 3, 4), "64x4": (64, 4, 4)}
IMAGES = {"image_size": 8, "patch_size": 4, "channels": 1, "num_classes": 10}
WATCH = {"log": percent(10), "eval": None, "checkpoint": percent(100), "trace": None}


def crate(size: str, **changes) -> Config:
    dim, depth, heads = SIZES[size]
    model = models.CRATEConfig(**IMAGES, dim=dim, depth=depth, heads=heads, head_dim=dim // heads)
    return recipes.digits(model, **{"total": epochs(40), **WATCH, **changes})


def vit(size: str, **changes) -> Config:
    dim, depth, heads = SIZES[size]
    model = models.ViTConfig(**IMAGES, dim=dim, depth=depth, heads=heads)
    return recipes.digits(model, **{"total": epochs(40), **WATCH, **changes})


def igpt(size: str, *, task: str = "autoregressive", **changes) -> Config:
    dim, depth, heads = SIZES[size]
    model = models.IGPTConfig(
        num_positions=64,
        dim=dim,
        depth=depth,
        heads=heads,
        causal=task != "bert",
        num_classes=10 if task == "joint" else 0,
    )
    config = Config(
        model=model,
        task=task,
        batch_size=32,
        label_smoothing=0.0,
        total=epochs(6),
        data=DataConfig(name="digits"),
        optimizer=AdamW(lr=2e-3, weight_decay=0.1, b1=0.9, b2=0.95),
        **WATCH,
    )
    return dataclasses.replace(config, **changes)


FAMILIES = {"crate": crate, "vit": vit, "igpt": igpt}


def few(family: str) -> Config:
    """Ten labelled examples of each class, for as many steps."""
    config = FAMILIES[family]("32x3")
    data = dataclasses.replace(config.data, labels_per_class=10)
    # 1,437 examples are seen 40 times, 100 examples 575 times.
    return dataclasses.replace(config, data=data, total=epochs(575))


def decayed(family: str, factor: float) -> Config:
    """Another weight decay."""
    config = FAMILIES[family]("32x3")
    decay = factor * config.optimizer.weight_decay
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, weight_decay=decay))


def pressures() -> dict:
    """Name → what makes its configuration: less data, other regularisation, more and other tasks."""
    found = {}
    for family in ("crate", "vit"):
        found[f"{family}-few"] = partial(few, family)
        found[f"{family}-undecayed"] = partial(decayed, family, 0.0)
        found[f"{family}-decayed"] = partial(decayed, family, 10.0)
    found["igpt-joint"] = partial(igpt, "32x3", task="joint")
    found["igpt-masked"] = partial(igpt, "32x3", task="bert")
    return found


SIZES_AND_SEEDS = {
    f"{family}-{size}-{seed}": partial(make, size, seed=seed)
    for family, make in FAMILIES.items()
    for size in SIZES
    for seed in range(2)
}
# python -m crate_jax.study trains every run.
STUDIES = {
    "convergence": Study(SIZES_AND_SEEDS, analysis="crate_jax.analysis.convergence"),
    "pressures": Study(pressures(), analysis="crate_jax.analysis.convergence"),
}


def get_config(variant="digits"):
    return choose(variant, {"digits": partial(crate, "32x3"), **variants(STUDIES)})
