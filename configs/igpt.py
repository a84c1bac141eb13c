"""iGPT."""

from crate_jax import models
from crate_jax.training.config import Config, DataConfig, OptimizerConfig, epochs, to_config_dict


def get_config(variant: str = "digits"):
    return to_config_dict(
        Config(
            model=models.IGPTConfig(num_positions=64, dim=128, depth=6, heads=4),
            task="autoregressive",
            batch_size=64,
            total=epochs(60),
            data=DataConfig(name="digits"),
            optimizer=OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.1, b1=0.9, b2=0.95),
        )
    )
