"""Language models of bytes: CRATE-GPT, CRATE-BERT and their twins with transformer blocks."""

import dataclasses

from crate_jax import models
from crate_jax.training.config import Config, DataConfig, OptimizerConfig, choose, epochs, steps


def gpt() -> Config:
    return Config(
        model=models.CRATEGPTConfig(
            vocab_size=256, num_positions=128, dim=128, depth=4, heads=4, head_dim=32
        ),
        task="autoregressive",
        batch_size=32,
        label_smoothing=0.0,
        total=steps(1000),
        data=DataConfig(name="stdlib"),
        optimizer=OptimizerConfig(name="adamw", lr=2e-3, weight_decay=0.1, b1=0.9, b2=0.95, clip_norm=1.0),
    )


def bert(config: Config) -> Config:
    """Masked bytes: every position sees all others."""
    return dataclasses.replace(config, task="bert", model=dataclasses.replace(config.model, causal=False))


def transformer(config: Config) -> Config:
    """The twin of a configuration: same task, width, depth and heads, with attention and MLP."""
    model = config.model
    shared = {field.name: getattr(model, field.name) for field in dataclasses.fields(models.TokenConfig)}
    return dataclasses.replace(config, model=models.IGPTConfig(**{**shared, "family": "igpt"}))


def openwebtext() -> Config:
    model = models.CRATEGPTConfig(vocab_size=256, num_positions=1024, dim=768, depth=12, heads=12)
    return Config(
        model=model,
        task="autoregressive",
        batch_size=384,
        label_smoothing=0.0,
        total=steps(600_000),
        warmup=steps(2000),
        data=DataConfig(name="text:data/openwebtext"),
        optimizer=OptimizerConfig(name="adamw", lr=6e-4, weight_decay=0.1, b1=0.9, b2=0.95, clip_norm=1.0),
    )


def get_config(variant="gpt"):
    return choose(
        variant,
        {
            "gpt": gpt,
            "bert": lambda: bert(gpt()),
            "transformer_gpt": lambda: transformer(gpt()),
            "transformer_bert": lambda: transformer(bert(gpt())),
            "openwebtext": openwebtext,
            "openwebtext_transformer": lambda: transformer(openwebtext()),
        },
    )
