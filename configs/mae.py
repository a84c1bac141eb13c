"""CRATE-MAE."""

from functools import partial

from crate_jax import models
from crate_jax.training.config import Config, DataConfig, OptimizerConfig, choose, epochs


def digits() -> Config:
    return Config(
        model=models.CRATEMAEConfig(
            image_size=8, patch_size=2, channels=1, dim=96, depth=4, heads=4, head_dim=24, penalty=0.1
        ),
        task="masked_autoencoder",
        batch_size=64,
        label_smoothing=0.0,
        total=epochs(200),
        data=DataConfig(name="digits", shift=0.75),
        optimizer=OptimizerConfig(name="adamw", lr=2e-3, weight_decay=0.05, b1=0.9, b2=0.95),
    )

import dataclasses
def autoencoder() -> Config:
    return dataclasses.replace(digits(), task="autoencoder")

def get_config(variant="digits"):
    return choose(variant, {"digits": digits, "autoencoder": autoencoder})
