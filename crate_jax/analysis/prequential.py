"""Lengths of a run: what its learning curve says as a prequential code, and what its parameters and data take together."""

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from crate_jax import InputError
from crate_jax.compression.lengths import CodeLength, Prequential, TwoPart, quantise
from crate_jax.data import subset
from crate_jax.data.augmentation import Augmentations
from crate_jax.data.dataset import WINDOWED
from crate_jax.data.sources import DatasetInfo
from crate_jax.runs.config import Config, DataConfig
from crate_jax.runs.metrics import read_metrics
from crate_jax.runs.workdir import read_config, read_dataset
from crate_jax.training import evaluation, steps
from crate_jax.training.opening import Opened

# Bits of a parameter that a two-part code is tried with.
PARAMETER_BITS = (32, 16, 12, 10, 8, 6, 4)
# Training examples that the loss of a two-part code is measured on.
EXAMPLES = 4096


class Curve(NamedTuple):
    """A run's first pass as a code.

    Attributes:
      code: one part per log of the run.
      steps: of the last update of each part.
      examples: how many were coded.
      raw_bytes: what they take as they are stored.
    """

    code: Prequential
    steps: list[int]
    examples: int
    raw_bytes: float

    @property
    def length(self) -> CodeLength:
        """In every unit."""
        return CodeLength(self.code.nats, sum(self.code.tokens), self.raw_bytes)


def of_run(workdir: Path) -> Curve:
    """The prequential length of the examples that a run saw in its first pass, from its `metrics.jsonl`.

    The training loss of a step is the loss of its batch before the update, so the logged means times what they are means of
    are the lengths of the parts. The end is the test loss at the last evaluation.

    Raises:
      InputError: a run whose training losses are no code: another task, dropout or augmentation, overlapping windows of a
        text; or none that is whole.
    """
    config, info = read_config(workdir), read_dataset(workdir)
    refuse_what_is_no_code(config, info, str(workdir))
    lines = read_metrics(workdir / "metrics.jsonl")
    tested = [line for line in lines if "eval/loss" in line]
    logged = [line for line in lines if "train/loss" in line]
    pass_end = info.num_examples["train"] // config.batch_size
    inside = [line for line in logged if line["step"] <= pass_end]
    if not inside or not tested:
        raise InputError(
            f"{workdir}: no part of its first pass ({pass_end:,} steps) was logged, or it was never tested; "
            "accepted: a run that logged and was tested"
        )
    ends = [int(line["step"]) for line in inside]
    sizes = np.diff([0, *ends]) * config.batch_size * config.model.num_positions
    losses = [float(line["train/loss"]) for line in inside]
    code = Prequential(sizes.tolist(), losses, float(tested[-1]["eval/loss"]))
    return Curve(code, ends, ends[-1] * config.batch_size, sum(code.tokens) * bytes_per_token(info))


def refuse_what_is_no_code(config: Config, info: DatasetInfo, where: str) -> None:
    """Raise for a run whose training losses are not lengths of its examples.

    Raises:
      InputError: says which setting is in the way.
    """
    if config.task != "autoregressive":
        raise InputError(
            f"{where}: found task {config.task}; accepted for a prequential length: autoregressive"
        )
    if config.model.dropout:
        raise InputError(
            f"{where}: found model.dropout {config.model.dropout:g}; accepted for a prequential length: 0, "
            "since the training loss is otherwise not the model's own"
        )
    if config.init_from is not None:
        raise InputError(
            f"{where}: found init_from {config.init_from}; accepted for a prequential length: none, "
            "since whoever decodes does not have what the run started from"
        )
    default = DataConfig()
    for field in dataclasses.fields(Augmentations):
        if getattr(config.data, field.name) != getattr(default, field.name):
            raise InputError(
                f"{where}: found data.{field.name} {getattr(config.data, field.name)}; accepted for a prequential length: "
                "images as they are"
            )
    if info.kind in WINDOWED:
        raise InputError(
            f"{where}: a run on {info.kind} sees overlapping windows, so each {info.tokens.unit} comes more than once; "
            "accepted: examples that share nothing; for text there is python -m crate_jax.compress joint"
        )


def bytes_per_token(info: DatasetInfo) -> float:
    """What a token takes as it is stored: a byte, or of made symbols log₂ of how many there are."""
    if info.tokens is None or info.tokens.symbols is None:
        return 1.0
    return math.log2(info.tokens.vocab_size) / 8


def two_part(opened: Opened, examples: int) -> list[TwoPart]:
    """The two-part length of `examples` training examples under a trained run, for each of PARAMETER_BITS.

    The loss of EXAMPLES of them, evenly spread, stands for that of all.

    Args:
      opened: the run and its parameters.
      examples: how many training examples the code is for.
    """
    run, found = opened.run, []
    sample = run.data.eval_batches(subset.spread(run.data.source("train"), EXAMPLES))
    with jax.set_mesh(run.mesh):
        eval_step = steps.make_eval_step(run.model, run.task, run.mesh, run.compiler_options)
        for bits in PARAMETER_BITS:
            params, nats = quantise(opened.params, bits)
            loss = evaluation.evaluate(eval_step, params, sample, run.mesh)["loss"]
            found.append(TwoPart(bits, nats, loss * examples * run.config.model.num_positions))
    return found
