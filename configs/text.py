"""Language models of bytes, with CRATE's blocks and with a transformer's.

    python -m crate_jax.train  --config=configs/text.py --workdir=runs/text
    python -m crate_jax.sample --workdir=runs/text --num=2 --prompt="def "

The default, a CRATE-GPT, learns the source code of Python's own library (the modules at its top; of Python 3.11 4.7 MB, of
which the last tenth is held out), offline. Other text: --config.data.name=text:PATH, a file or a folder of files, with
train/ and test/ in it or not. The run ends with the bits a test byte beside order-0 and order-1 entropies, zlib and LZMA.
Hardware: 2 CPU cores, four minutes. Measured: 2.89 bits a test byte (order-0 4.531, order-1 3.450, zlib 1.967).

Variants (--config=configs/text.py:VARIANT):
    bert                     CRATE-BERT: masked bytes from all others; the loss is in nats a masked byte
    transformer_gpt, transformer_bert
                             the twins with attention and MLP (iGPT's blocks), of the same width, depth and heads
    english, english_crate   models for compressing English files: bytes of eight books and of Python's documentation, which
                             python -m benchmarks.english_text puts together in data/english. english, measured: 2.69
                             bits per byte of held-out books in windows of 64 (order-1 3.58), in 317 s of processor time; it
                             is the model that compress encode takes when none is named. english_crate: 2.99 in 293 s
    openwebtext              CRATE-GPT of width 768 and 12 layers after the recipe of the book's Causal-CRATE-Base: context
                             1,024, batch 384, 600k steps, Adam(0.9, 0.95), weight decay 0.1, 2,000 steps of warm-up to
                             6e-4, a cosine to 6e-5; weights of more than one dimension decayed and gradients clipped at 1,
                             as in nanoGPT, which the book follows. Accelerators. Not run here.
    openwebtext_transformer  its twin

Differences: openwebtext learns bytes where the book's model learns the tokens of GPT-2, so its 3.37 nats are no number to
expect. docs/recipes.md has every setting beside theirs.
"""

import dataclasses

from crate_jax import models
from crate_jax.runs.config import Config, DataConfig, choose, steps
from crate_jax.runs.optimizers import AdamW


def gpt() -> Config:
    return Config(
        model=models.CRATEGPTConfig(vocab_size=256, num_positions=128, dim=96, depth=4, heads=4, head_dim=24),
        task="autoregressive",
        batch_size=16,
        label_smoothing=0.0,
        total=steps(2000),
        data=DataConfig(name="stdlib"),
        optimizer=AdamW(lr=3e-3, weight_decay=0.1, b1=0.9, b2=0.95, clip_norm=1.0),
    )


def bert(config: Config) -> Config:
    """Masked bytes: every position sees all others. Longer, as a step has 15 % of the targets."""
    model = dataclasses.replace(config.model, causal=False)
    return dataclasses.replace(config, task="bert", model=model, total=steps(3000))


def transformer(config: Config) -> Config:
    """The twin of a configuration: same task, width, depth and heads, with attention and MLP."""
    model = config.model
    shared = {field.name: getattr(model, field.name) for field in dataclasses.fields(models.TokenConfig)}
    return dataclasses.replace(config, model=models.IGPTConfig(**{**shared, "family": "igpt"}))


def english() -> Config:
    """A transformer for English files, of a size that ten minutes of processor time are enough for. Windows are short and
    updates many, for it sees each byte about once.
    """
    model = models.IGPTConfig(vocab_size=256, num_positions=64, dim=96, depth=4, heads=3)
    config, data = gpt(), DataConfig(name="text:data/english")
    optimizer = dataclasses.replace(config.optimizer, lr=2e-3)
    return dataclasses.replace(config, model=model, total=steps(2400), data=data, optimizer=optimizer)


def english_crate() -> Config:
    """Its twin of as many products per byte: CRATE's layer has 3 d² of them, a transformer's 12 d²."""
    model = models.CRATEGPTConfig(vocab_size=256, num_positions=64, dim=192, depth=4, heads=6, head_dim=32)
    return dataclasses.replace(english(), model=model)


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
        optimizer=AdamW(
            lr=6e-4,
            end_lr=6e-5,
            weight_decay=0.1,
            decay="matrices and tokens",
            b1=0.9,
            b2=0.95,
            clip_norm=1.0,
        ),
    )


def get_config(variant="gpt"):
    return choose(
        variant,
        {
            "gpt": gpt,
            "bert": lambda: bert(gpt()),
            "transformer_gpt": lambda: transformer(gpt()),
            "transformer_bert": lambda: transformer(bert(gpt())),
            "english": english,
            "english_crate": english_crate,
            "openwebtext": openwebtext,
            "openwebtext_transformer": lambda: transformer(openwebtext()),
        },
    )
