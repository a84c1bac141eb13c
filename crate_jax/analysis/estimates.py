"""Estimate what data cost as a code when the model and its learning are counted; no bits are written.

    python -m crate_jax.compress estimate --workdir=runs/addition
    python -m crate_jax.compress joint --config=configs/text.py --first=stdlib --second=text:PATH --output=joint.json

estimate: of a run, the length of its test set; the prequential length of its first pass, each batch coded before the
update on it, split into the entropy that is left and what was learned; and the two-part length of the same examples, the
parameters in a code of a few bits each and then the data. Writes report/estimate.json in the run's folder.

joint: of two datasets X and Y of tokens, what one model needs for both, shuffled together, and for Y after X, beside one
that starts afresh on Y. For each seed a model learns X and then Y, another Y alone, a third both; see analysis/joint.py.
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from crate_jax import InputError
from crate_jax.analysis import joint as joints
from crate_jax.analysis import prequential
from crate_jax.compression.lengths import CodeLength
from crate_jax.runs import cli
from crate_jax.runs.console import console, table, wide_table
from crate_jax.runs.metrics import read_metrics, write_if_possible
from crate_jax.settings import REQUIRED, setting
from crate_jax.training.opening import open_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimateFlags(cli.WorkdirFlags):
    """Those of a run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointFlags:
    """The model, the two datasets and how much of them."""

    config: str = setting(REQUIRED, "Model, batch size and optimiser: FILE.py, or FILE.py:VARIANT.")
    first: str = setting(REQUIRED, "The dataset X, such as stdlib or text:PATH.")
    second: str = setting(REQUIRED, "The dataset Y, of the same kind of tokens.")
    seeds: int = setting(3, "Number of seeds; each decides initial parameters and order.", least=1)
    examples: int = setting(4096, "Sequences taken of each, at most.", least=1)
    output: Path | None = setting(None, "A JSON file for the lengths; left out: none.")


def estimate(argv: list[str]) -> None:
    """Print the lengths of a run, and write them."""
    flags, config, path, overrides = cli.parse_workdir(argv, EstimateFlags)
    opened = open_run(path, flags.checkpoint, config=config, overrides=overrides)
    info, run = opened.run.info, opened.run
    tested = [line for line in read_metrics(path / "metrics.jsonl") if "eval/loss" in line]
    if run.config.task != "autoregressive" or not tested:
        raise InputError(
            f"--workdir: {path} was trained for task {run.config.task!r} and tested {len(tested)} times; accepted: a run of "
            "task autoregressive that was tested"
        )
    tokens = int(tested[-1]["eval/count"]) * run.config.model.num_positions
    per_token = prequential.bytes_per_token(info)
    test = CodeLength(tested[-1]["eval/loss"] * tokens, tokens, tokens * per_token)
    values = {"step": opened.step, "test set": test.as_dict()}
    table(f"{path}: the test set under the trained model, which is not counted", _units(test))
    try:
        curve = prequential.of_run(path)
    except InputError as error:
        console.print(f"no prequential length: {error}", markup=False)
    else:
        values["prequential"] = _say_prequential(curve, info)
        values["two-part"] = _say_two_part(opened, curve)
    write_if_possible(path / "report" / "estimate.json", json.dumps(values, indent=1) + "\n")


def _say_prequential(curve: prequential.Curve, info) -> dict[str, float]:
    code, length = curve.code, curve.length
    values = {**length.as_dict(), "entropy_nats": code.entropy, "learned_nats": code.learned, "end": code.end}
    rows = {
        **_units(length),
        "entropy left": f"{code.entropy:,.0f} nats, {code.end:.4f} per token (the last test loss)",
        "learned": f"{code.learned:,.0f} nats, {code.learned / math.log(2) / 8:,.0f} bytes (the area above it)",
    }
    if info.tokens is not None and info.tokens.floor is not None:
        floor = float(np.mean(info.tokens.floor))
        values["floor"] = floor
        rows["entropy of the data"] = f"{floor:.4f} nats per token; {code.end - floor:+.4f} are left to learn"
    table(f"prequential length of the first {curve.examples:,} training examples", rows)
    return values


def _say_two_part(opened, curve: prequential.Curve) -> list[dict[str, float]]:
    parts = prequential.two_part(opened, curve.examples)
    shortest = min(parts, key=lambda part: part.nats)
    kib = lambda nats: f"{nats / math.log(2) / 8 / 1024:,.1f}"  # noqa: E731
    rows = [
        [
            part.bits,
            kib(part.parameters),
            kib(part.data),
            kib(part.nats),
            "shortest" if part is shortest else "",
        ]
        for part in parts
    ]
    wide_table(
        f"two-part length of the same examples (KiB); prequential {kib(curve.code.nats)}",
        ["bits per parameter", "parameters", "data under them", "together", ""],
        rows,
    )
    return [{**part._asdict(), "nats": part.nats} for part in parts]


def _units(length: CodeLength) -> dict[str, str]:
    return {
        "length": f"{length.nats:,.0f} nats, {length.bits:,.0f} bits, {length.bytes:,.0f} bytes",
        "per token": f"{length.nats_per_token:.4f} nats, {length.bits_per_dim:.4f} bits",
        "per byte": f"{length.bits_per_byte:.4f} bits; {length.ratio:.2%} of {length.raw_bytes:,.0f} bytes",
    }


def joint(argv: list[str]) -> None:
    """Print the lengths of two datasets, apart and together, and write them if asked to."""
    flags, changes = cli.parse_changes(argv, JointFlags)
    values, _ = cli.load_config(flags.config)
    values, overrides = cli.override(values, changes, JointFlags)
    config = cli.from_config_dict(values, overrides)
    found = joints.measure(config, flags.first, flags.second, range(flags.seeds), flags.examples)
    columns = [
        "seed",
        "L(X)",
        "L(Y)",
        "L(Y | X)",
        "L(X, Y)",
        "L(X, Y) − L(X)",
        "L(Y) − L(Y | X)",
        "L(X) + L(Y) − L(X, Y)",
    ]
    names = (
        "first",
        "second",
        "second_given_first",
        "both",
        "both_less_first",
        "saved_in_turn",
        "saved_together",
    )
    rows = [[one.seed, *(f"{getattr(one, name):,.0f}" for name in names)] for one in found]
    means = {name: float(np.mean([getattr(one, name) for one in found])) for name in names}
    wide_table(
        f"X = {flags.first}, Y = {flags.second}: prequential lengths in nats",
        columns,
        [*rows, ["mean", *(f"{means[name]:,.0f}" for name in names)]],
    )
    if flags.output is not None:
        seeds = [{"seed": one.seed, **{name: getattr(one, name) for name in names}} for one in found]
        text = json.dumps(
            {"first": flags.first, "second": flags.second, "seeds": seeds, "mean": means}, indent=1
        )
        write_if_possible(flags.output, text + "\n")
