"""The test loss of a next-token model as a code length, beside ordinary coders; and the error of the palette."""

import math
from collections.abc import Mapping

import jax
import numpy as np

from crate_jax import models
from crate_jax.compression import baselines
from crate_jax.data.dataset import WINDOWED
from crate_jax.data.sources import Source
from crate_jax.reports.base import SectionResult, Table, TrainedRun, lower_by
from crate_jax.tasks import Task
from crate_jax.tasks.tokenizer import make_tokenizer

# No more tokens than this are looked at, of examples spread evenly over the split: LZMA is slow.
MAX_TOKENS = 2**24


def make(trained: TrainedRun) -> SectionResult | None:
    """Lengths of the test set under the model and under coders that everyone has; nothing for a model that is no code.

    Of more than MAX_TOKENS tokens the coders see a part; the model's mean is that of the whole split. Neither the model
    itself nor the palette is counted.
    """
    run, evaluated = trained.run, trained.last_evaluation
    model = run.config.model
    if not (isinstance(model, models.TokenConfig) and model.causal and evaluated):
        return None
    nats = evaluated.get("eval/generative_loss", evaluated["eval/loss"])
    source = trained.test_source()
    chosen, tokens = reported_tokens(run.task, source)
    bits = {
        "model": nats * tokens.size / math.log(2),
        "order-0 entropy": baselines.order0_bits(tokens),
        "order-1 entropy": baselines.order1_bits(tokens),
        "zlib -9": baselines.zlib_bits(tokens),
        "lzma -9e": baselines.lzma_bits(tokens),
    }
    if run.info.tokens is None:
        seen = make_tokenizer(run.meaning, model.vocab_size).decode(tokens)
        bits["png, a file an image"] = baselines.png_bits(seen)
        bits["png, one contact sheet"] = baselines.png_sheet_bits(seen)
    kind = run.info.kind
    what = f"windows of {kind}" if kind in WINDOWED else kind
    lengths, table = compare(
        f"code length of {describe(tokens, source, what)}", bits, tokens.size, run.meaning.unit
    )
    values = {"examples": len(tokens), "tokens": tokens.size, "code_length": lengths}
    text = (
        f"The model's length is its test loss at step {evaluated['step']:,}; no bits were written, and its parameters are "
        "not counted. The entropies are those of the test tokens under their own frequencies, without context and given the "
        "token before. zlib, LZMA and PNG compressed the same tokens."
    )
    note = None
    if run.palette is not None:
        images = np.stack([source[int(i)]["image"] for i in chosen])
        mse = float(np.mean((images.astype(np.float64) - seen) ** 2))
        # JSON has no infinity; with no error at all there is no signal-to-noise ratio either.
        psnr = 10 * math.log10(255**2 / mse) if mse else None
        values["palette"] = {"mse": mse, "psnr_db": psnr}
        about = f"palette of {len(run.palette)} colours: mean squared error {mse:.1f}"
        note = about + (f", {psnr:.2f} dB" if mse else "")
        text += f" The images' colours were first replaced by the nearest of the palette: {note}, for values 0 … 255."
    return SectionResult("Code length", text, values, [table], note=note)


def reported_tokens(task: Task, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Examples spread evenly over the split, MAX_TOKENS tokens of them at most: their places `[m]`, tokens `[m, n]`."""
    encode = jax.jit(task.inputs)
    length = jax.eval_shape(encode, {name: np.stack([value]) for name, value in source[0].items()}).shape[1]
    count = min(len(source), max(1, MAX_TOKENS // length))
    chosen = np.arange(count) * len(source) // count
    examples = ([source[int(i)] for i in part] for part in np.array_split(chosen, -(-count // 256)))
    batches = ({name: np.stack([each[name] for each in part]) for name in part[0]} for part in examples)
    return chosen, np.concatenate([np.asarray(encode(batch)) for batch in batches])


def describe(tokens: np.ndarray, source: Source, what: str) -> str:
    """What a table is of, in words."""
    part = (
        ""
        if len(tokens) == len(source)
        else f", spread over {len(source):,}; the model's mean is over all of those"
    )
    return f"{len(tokens):,} test {what} of {tokens.shape[1]:,} tokens{part}"


def compare(
    title: str, bits: Mapping[str, float], count: int, unit: str
) -> tuple[dict[str, dict[str, float]], Table]:
    """Lengths in bits of `count` tokens per token and in bytes, by name and as a table."""
    lengths = {
        name: {
            "nats_per_token": total * math.log(2) / count,
            f"bits_per_{unit}": total / count,
            "bytes": total / 8,
        }
        for name, total in bits.items()
    }
    rows = [
        [
            name,
            f"{length['nats_per_token']:.4f}",
            f"{length[f'bits_per_{unit}']:.4f}",
            f"{length['bytes']:,.0f}",
            "" if name == "model" else lower_by(bits["model"], bits[name]),
        ]
        for name, length in lengths.items()
    ]
    columns = ["", "nats per token", f"bits per {unit}", "bytes", "model is shorter by"]
    return lengths, Table(title, columns, rows)
