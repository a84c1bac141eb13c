"""Draw images from a trained next-pixel model, complete the lower part of given ones, or write text with a model of bytes.

    python -m crate_jax.sample --workdir=runs/igpt --num=32 --temperature=0.9
    python -m crate_jax.sample --workdir=runs/igpt --mode=complete --input=FOLDER
    python -m crate_jax.sample --workdir=runs/text --prompt="def "

Writes report/samples.png (or completions.png, or samples.txt) in the run's folder, and the tokens beside it as .npz.
"""

import dataclasses
import io
from pathlib import Path

import jax
import numpy as np

from crate_jax import InputError, models
from crate_jax.analysis.pictures import image_grid
from crate_jax.data import folders, subset
from crate_jax.models import sampling
from crate_jax.parallel import processes, sharding
from crate_jax.runs import cli
from crate_jax.runs.console import console, progress, table
from crate_jax.runs.metrics import write_atomically
from crate_jax.settings import LARGEST_SEED, setting
from crate_jax.tasks.tokenizer import make_tokenizer
from crate_jax.training.building import Run
from crate_jax.training.opening import open_run

MODES = ("unconditional", "complete")
TASKS = ("autoregressive", "joint")
# A pixel that was not given, in the picture of a prompt.
UNKNOWN = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(cli.WorkdirFlags, processes.JobFlags):
    """Those of a run and of a job, and how to draw."""

    mode: str = setting("unconditional", "Draw whole images, or complete given ones.", choices=MODES)
    rows: int | None = setting(None, "Rows of pixels that are given, from the top; left out: half.", least=1)
    num: int = setting(16, "Number of images or texts.", least=1)
    temperature: float = setting(1.0, "Logits are divided by it.", above=0)
    top_k: int | None = setting(None, "Draw from this many of the likeliest tokens only.", least=1)
    top_p: float | None = setting(
        None, "Draw from the likeliest tokens that have this probability together.", above=0, most=1
    )
    seed: int = setting(0, "The same seed draws the same images.", least=0, most=LARGEST_SEED)
    input: Path | None = setting(None, "An image or a folder to complete; left out: the test split.")
    prompt: str | None = setting(None, "What a text begins with.")
    output: Path | None = setting(None, "The PNG, with the tokens beside it as .npz; for text, a text file.")


def main(argv: list[str]) -> None:
    flags, config, path, overrides = cli.parse_workdir(argv, Flags)
    if config.task not in TASKS:
        raise InputError(
            f"--workdir: {path} was trained for task {config.task!r}; accepted: {', '.join(TASKS)}"
        )
    num, mode, rows = flags.num, flags.mode, flags.rows
    if mode == "unconditional":
        for name in ("rows", "input"):
            if getattr(flags, name) is not None:
                raise InputError(f"--{name} belongs to --mode=complete")
    sampling_params = sampling.SamplingParams(flags.temperature, flags.top_k, flags.top_p)
    sampling_params.check(config.model.vocab_size)
    run, params, step = open_run(path, flags.checkpoint, config=config, overrides=overrides)
    if run.info.kind == "pixels":
        raise InputError(f"--workdir: {path} was trained on rows of pixels; accepted: images, or text")
    if run.info.tokens is not None:
        _write_text(run, params, step, flags, sampling_params)
        return
    if flags.prompt is not None:
        raise InputError(
            "--prompt is for models of text; of images the upper rows are given, with --mode=complete"
        )
    size = run.config.data.image_size
    rows = size // 2 if rows is None else rows
    if mode == "complete" and not 0 < rows < size:
        raise InputError(f"--rows: found {rows}; accepted: 1 to {size - 1}, some of the image's {size} rows")
    tokenizer = make_tokenizer(run.meaning, run.config.model.vocab_size)
    originals, given = np.zeros((num, size * size), np.int32), 0
    if mode == "complete":
        images = _inputs(run, flags.input, num)
        originals, given = np.asarray(tokenizer.encode(images)), rows * size
    tokens = draw_tokens(run, params, originals, given, sampling_params, flags.seed)

    default = run.workdir / "report" / ("samples.png" if mode == "unconditional" else "completions.png")
    output = flags.output or default
    output.parent.mkdir(parents=True, exist_ok=True)
    scale = 255 / run.info.max_value if run.palette is None else 1
    pictures = [tokenizer.decode(tokens) * scale]
    arrays = {"tokens": tokens}
    if mode == "complete":
        whole = tokenizer.decode(originals) * scale
        prompt = whole.copy()
        prompt[:, rows:] = UNKNOWN
        pictures = [prompt, *pictures, whole]
        arrays |= {"originals": originals, "given_rows": np.int32(rows)}
    write_atomically(output, image_grid(pictures))
    file = io.BytesIO()
    np.savez(file, **arrays)
    write_atomically(output.with_suffix(".npz"), file.getvalue())
    shown = "images" if mode == "unconditional" else f"given {rows} rows, completion, original"
    table(
        f"{run.workdir} at step {step}",
        {"drawn": f"{len(tokens)} × {shown}", "picture": output, "tokens": output.with_suffix(".npz")},
    )


def _write_text(
    run: Run, params: models.Params, step: int, flags: Flags, sampling_params: sampling.SamplingParams
) -> None:
    """Print texts as long as the model's window, and write them to a file."""
    if flags.mode != "unconditional":
        raise InputError(
            f"--mode: found 'complete' for a model of {run.info.kind}; accepted: --prompt=TEXT, which it goes on from"
        )
    meaning, positions = run.info.tokens, run.model.config.num_positions
    prompt = meaning.encode(flags.prompt or "")
    if len(prompt) >= positions:
        raise InputError(
            f"--prompt: found {len(prompt)} {meaning.unit}s; accepted: fewer than the window of {positions}"
        )
    tokens = np.zeros((flags.num, positions), np.int32)
    tokens[:, : len(prompt)] = prompt
    drawn = draw_tokens(run, params, tokens, len(prompt), sampling_params, flags.seed)
    texts = [meaning.decode(row) for row in drawn]
    output = flags.output or run.workdir / "report" / "samples.txt"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, "\n\n".join(texts) + "\n")
    for number, text in enumerate(texts, 1):
        console.rule(f"{number}")
        console.print(text)
    table(
        f"{run.workdir} at step {step}",
        {"written": f"{len(texts)} × {positions} {meaning.unit}s", "file": output},
    )


def draw_tokens(
    run: Run,
    params: models.Params,
    prompt: np.ndarray,
    given: int,
    sampling_params: sampling.SamplingParams,
    seed: int,
) -> np.ndarray:
    """Tokens int32 `[b, n]` whose first `given` are those of `prompt` `[b, n]`, the batch split over the mesh.

    A row of pixels is drawn at a time by one compiled scan, so that progress can be shown; of text all of it.
    """
    count, positions = prompt.shape
    shards = sharding.batch_shards(run.mesh)
    padded = np.concatenate([prompt, np.zeros((-count % shards, positions), prompt.dtype)])
    split = sharding.batch_sharding(run.mesh)
    row = run.config.data.image_size or positions
    with jax.set_mesh(run.mesh):
        state = sampling.start(run.model, len(padded))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(len(padded)))
        padded, keys = jax.device_put((padded, keys), split)
        sampler = sampling.make_sampler(run.model, row, sampling_params)
        drawn = []
        with progress("rows of pixels", positions // row) as advance:
            for _ in range(positions // row):
                state, tokens = sampler(params, state, padded, given, keys)
                drawn.append(np.asarray(tokens))
                advance(1)
    return np.concatenate(drawn, axis=1)[:count]


def _inputs(run: Run, path: Path | None, num: int) -> np.ndarray:
    """Images to complete, uint8 `[b, s, s, c]`, b ≤ num."""
    data = run.config.data
    if path is None:
        source = run.data.source("test")
        some = subset.spread(source, num)
        return np.stack([some[i]["image"] for i in range(len(some))])
    images = folders.read_images(path, limit=num, size=data.image_size, channels=data.channels)
    # Files use all of a byte, the digits 17 values of it.
    return np.rint(images * (run.info.max_value / 255)).astype(np.uint8)


if __name__ == "__main__":
    cli.run(main, Flags)
