"""Addition: sums of two numbers that are made, not stored, so the entropy of every symbol is known. Offline.

    python -m crate_jax.train  --config=configs/addition.py --workdir=runs/addition
    python -m crate_jax.sample --workdir=runs/addition --prompt=123+456=

The default, a transformer with iGPT's blocks, learns to add numbers of three digits from 790,146 pairs, each seen once
at most, and is tested on 10,000 others. The operands cost 2·ln 900 nats, whoever guesses them, and the sum nothing once
the model adds: 1.0465 nats per symbol are the floor that no model gets below. The run ends with the loss of each
position beside its own floor, and the step at which the position was learned (docs/compression.md).

Hardware: 2 CPU cores, five minutes of processor time. Measured: 1.0468 nats per symbol, 0.0003 above the floor, and all of
the 10,000 held-out sums right in every digit.

Variants (--config=configs/addition.py:VARIANT):
    crate            the same with CRATE-GPT's blocks (causal MSSA, ISTA). Measured: 1.2244 nats per symbol; it guesses the
                     last digit, so 10.6 % of the sums are right
    reversed         the sum is written with its last digit first, so that no carry has to be foreseen; crate_reversed
    two_digits       a smaller task for a smaller model (25,000 parameters): 6,547 of the 8,100 pairs, many times over
    two_digits_dropout
                     a tenth of the entries dropped while training, as in the demonstration below: its training loss is then
                     above the test loss
    two_digits_finite
                     no more than 1,000 pairs: what is learned by heart is no help with the others. Any other number by
                     --config.data.train_split=train[:NUMBER]
    digits8          the task and schedule of the demonstration github.com/yulundu/compression: eight digits, 28 symbols,
                     minGPT's gpt-mini (6 layers, 6 heads, width 192), batch 512, AdamW(0.9, 0.98) at a constant 1e-3. For a
                     GPU; only 8 steps were run here. digits8_crate, digits8_reversed, digits8_crate_reversed: not run
    digits8_small    eight digits for the model of three digits and one core of a CPU: not run. digits8_small_reversed: with
                     --config.total_steps=24000 it learned eight of the sum's nine digits in 4,800 steps, 1.3906 nats per
                     symbol, and no more in 7,700 others

The data are named addition:OPTIONS; any other task of the kind is
--config.data.name=addition:digits=5,base=16,leading_zero=true.

Study: models of five sizes against the floor, on sums of two digits:

    python -m crate_jax.study --config=configs/addition.py:sizes --workdir=runs/sizes

Differences from the demonstration: its model drops a tenth of the entries (set --config.model.dropout=0.1), decays
embeddings too, and its pairs may repeat. Held-out pairs are excluded in both; here the pair with a and b exchanged is
excluded as well.
"""

import dataclasses
from functools import partial

from crate_jax import models
from crate_jax.runs.config import Config, DataConfig, choose, percent, steps
from crate_jax.runs.optimizers import AdamW
from crate_jax.runs.studies import Study, variants


def gpt(data: str = "addition:digits=3") -> Config:
    return Config(
        model=models.IGPTConfig(vocab_size=14, num_positions=13, dim=64, depth=4, heads=4),
        task="autoregressive",
        batch_size=256,
        label_smoothing=0.0,
        total=steps(1500),
        eval=percent(4),
        data=DataConfig(name=data),
        optimizer=AdamW(lr=3e-3, weight_decay=0.01, b1=0.9, b2=0.98, clip_norm=1.0),
    )


def crate(config: Config) -> Config:
    """The twin of a configuration with CRATE's blocks. A layer has 3 d² products a token where iGPT's has 12 d²: it is twice
    as wide.
    """
    model = config.model
    shared = {field.name: getattr(model, field.name) for field in dataclasses.fields(models.TokenConfig)}
    wider = {"family": "crate_gpt", "dim": 2 * model.dim, "head_dim": 2 * model.head_dim}
    return dataclasses.replace(config, model=models.CRATEGPTConfig(**{**shared, **wider}))


def two_digits(dim: int = 32, depth: int = 2) -> Config:
    config = gpt("addition:digits=2")
    model = dataclasses.replace(config.model, num_positions=10, dim=dim, depth=depth, heads=dim // 8)
    return dataclasses.replace(config, model=model, batch_size=128)


def dropout(config: Config) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.1))


def finite(config: Config) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, train_split="train[:1000]"))


def digits8(data: str = "addition:digits=8") -> Config:
    config = gpt(data)
    return dataclasses.replace(
        config,
        model=models.IGPTConfig(vocab_size=14, num_positions=28, dim=192, depth=6, heads=6),
        batch_size=512,
        total=steps(4000),
        warmup=steps(10),
        eval=percent(2),
        optimizer=AdamW(lr=1e-3, end_lr=1e-3, weight_decay=0.01, b1=0.9, b2=0.98),
    )


def digits8_small(data: str = "addition:digits=8") -> Config:
    """Eight digits for one core of a CPU: the model of three digits."""
    config = gpt(data)
    model = dataclasses.replace(config.model, num_positions=28)
    return dataclasses.replace(config, model=model, batch_size=128, total=steps(4000))


SIZES = ((8, 1), (16, 1), (16, 2), (32, 2), (48, 2))
STUDIES = {
    "sizes": Study(
        {f"{dim}x{depth}": partial(two_digits, dim, depth) for dim, depth in SIZES},
        analysis="crate_jax.analysis.excess",
    )
}


def get_config(variant="gpt"):
    eight_reversed = "addition:digits=8,reversed=true"
    return choose(
        variant,
        {
            "gpt": gpt,
            "crate": lambda: crate(gpt()),
            "reversed": lambda: gpt("addition:digits=3,reversed=true"),
            "crate_reversed": lambda: crate(gpt("addition:digits=3,reversed=true")),
            "two_digits": two_digits,
            "two_digits_dropout": lambda: dropout(two_digits()),
            "two_digits_finite": lambda: finite(two_digits()),
            "digits8": digits8,
            "digits8_small": digits8_small,
            "digits8_small_reversed": lambda: digits8_small(eight_reversed),
            "digits8_reversed": lambda: digits8(eight_reversed),
            "digits8_crate": lambda: crate(digits8()),
            "digits8_crate_reversed": lambda: crate(digits8(eight_reversed)),
            **variants(STUDIES),
        },
    )
