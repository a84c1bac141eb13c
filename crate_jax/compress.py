"""Compress any file with a trained model and get it back, bit for bit.

    python -m crate_jax.compress encode --input=README.md
    python -m crate_jax.compress decode --input=README.md.crate --output=README.again
    python -m crate_jax.compress encode --input=digits.npy --model=runs/igpt
    python -m crate_jax.compress quantise --workdir=runs/text --output=text.npz
    python -m crate_jax.compress estimate --workdir=runs/text
    python -m crate_jax.compress joint --config=configs/text.py --first=stdlib --second=text:PATH

--model is a run of a causal token model (float: decodes on the machine, with the versions and threads that encoded it), or
the file that quantise made of one (portable: integers, decodes everywhere). docs/codec.md says what is in a file.
estimate and joint write no bits, but count what learning costs; --help after the word explains them.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from crate_jax import InputError
from crate_jax.analysis import estimates
from crate_jax.compression import codec, container, portable, quantise
from crate_jax.compression.predictors import Float, Predictor
from crate_jax.data import files
from crate_jax.runs import cli
from crate_jax.runs.console import progress, table
from crate_jax.runs.flags import asks_for_help
from crate_jax.settings import REQUIRED, one_of, setting
from crate_jax.training.checkpoint import LATEST
from crate_jax.training.opening import Opened, open_run

SUFFIX = ".crate"
# The model that comes with the package.
SHIPPED = Path(portable.__file__).with_name("text.npz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileFlags:
    """What encoding and decoding share."""

    input: Path = setting(REQUIRED, "The file to read.")
    output: Path | None = setting(
        None, "The file to write; left out: the input's name with .crate, or without it."
    )
    model: str | None = setting(
        None, "A run's folder or a portable model; left out: the one that is shipped."
    )
    checkpoint: str = setting(LATEST, "Of a run: latest, best, or the step of one that is kept.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeFlags(FileFlags):
    """Those of a file, and how it is cut."""

    chunk: int = setting(
        codec.CHUNK,
        "Bytes of a chunk, which decodes by itself.",
        least=codec.MIN_CHUNK,
        most=container.MAX_PAYLOAD,
    )
    lanes: int = setting(codec.LANES, "Chunks that are coded side by side.", least=1, most=2**20)
    context: int | None = setting(
        None,
        "Symbols before a window that it sees again; left out: half of it for text, none for images.",
        least=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeFlags(FileFlags):
    """Those of a file, and which part of it is decoded and how."""

    chunks: tuple[int, ...] = setting((), "Numbers of the chunks to decode; left out: all.", least=0)
    lanes: int | None = setting(
        None, "Chunks decoded side by side, with a portable model; left out: as encoded.", least=1, most=2**20
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantiseFlags(cli.WorkdirFlags):
    """Those of a run, and where its integers go."""

    output: Path | None = setting(None, "The file to write; left out: portable.npz in the run's folder.")
    context: int | None = setting(
        None,
        "Symbols before a window that it sees again, by default; left out: half of it for text, none for images.",
        least=0,
    )


def encode(argv: list[str]) -> None:
    """A file in, a shorter one out."""
    flags = cli.parse(argv, EncodeFlags)
    data, output = _read(flags.input), flags.output or flags.input.with_name(flags.input.name + SUFFIX)
    predictor = open_predictor(flags.model, flags.checkpoint)
    options = {"chunk": flags.chunk, "lanes": flags.lanes, "context": flags.context}
    with progress("chunks", -(-len(data) // flags.chunk)) as advance:
        encoded = codec.encode(data, predictor, advance=advance, **options)
    _write(output, encoded.data)
    kinds = Counter(kind for kind, _, _ in encoded.chunks)
    rate = f", {8 * len(encoded.data) / len(data):.3f} bits per byte" if data else ""
    table(
        f"{flags.input} → {output}",
        {
            "bytes": f"{len(data):,} → {len(encoded.data):,}{rate}",
            "chunks": ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none",
            "model": f"{predictor.numerics}, SHA-256 {predictor.digest.hex()[:12]}…",
        },
    )


def decode(argv: list[str]) -> None:
    """The file that was encoded."""
    flags = cli.parse(argv, DecodeFlags)
    data, output = _read(flags.input), flags.output
    if output is None:
        if flags.input.suffix != SUFFIX:
            raise InputError(f"--output is required: {flags.input} does not end in {SUFFIX}")
        output = flags.input.with_suffix("")
    _, stored = container.read(data, str(flags.input))
    if any(number >= len(stored) for number in flags.chunks):
        raise InputError(
            f"--chunks: found {max(flags.chunks)}; accepted: below {len(stored)}, the chunks of {flags.input}"
        )
    predictor = open_predictor(flags.model, flags.checkpoint)
    with progress("chunks", len(stored)) as advance:
        out = codec.decode(
            data,
            predictor,
            str(flags.input),
            chunks=sorted(set(flags.chunks)) or None,
            lanes=flags.lanes,
            advance=advance,
        )
    _write(output, out)
    table(f"{flags.input} → {output}", {"bytes": f"{len(out):,}", "SHA-256": container.digest(out).hex()})


def quantise_run(argv: list[str]) -> None:
    """A run in, its portable model out."""
    flags, config, path, overrides = cli.parse_workdir(argv, QuantiseFlags)
    opened = open_run(path, flags.checkpoint, config=config, overrides=overrides)
    model, params = opened.run.model, opened.params
    quantise.check(model.config)
    context = _default_context(opened) if flags.context is None else flags.context
    if context >= model.config.num_positions:
        raise InputError(
            f"--context: found {context}; accepted: below {model.config.num_positions}, the window"
        )
    data = quantise.quantise(model, params, quantise.draw(model, params), context)
    output = flags.output or path / "portable.npz"
    _write(output, data)
    table(
        f"{path} at step {opened.step} → {output}",
        {
            "parameters": f"{model.num_params:,}",
            "bytes": f"{len(data):,}",
            "SHA-256": container.digest(data).hex(),
        },
    )


def open_predictor(model: str | None, checkpoint: str = LATEST) -> Predictor:
    """The model that --model names.

    Raises:
      InputError: nothing there, or a run whose model does not predict one token after the other.
    """
    path = SHIPPED if model is None else cli.folder(model)
    if path.is_dir():
        opened = open_run(path, checkpoint)
        opened.run.model.init_cache(1, 1)  # Raises for a model that does not predict.
        return Float(opened.run.model, opened.params, _default_context(opened))
    if checkpoint != LATEST:
        raise InputError(f"--checkpoint: found {checkpoint}; accepted for a portable model: none")
    if not path.is_file():
        raise InputError(f"--model: no file or folder {path}; accepted: a run's folder or a portable model")
    return portable.load(path.read_bytes(), str(path))


def _default_context(opened: Opened) -> int:
    """Half a window for text, which goes on; none for images, each of which is a window."""
    info = opened.run.info
    return 0 if info.tokens is None or info.tokens.symbols else opened.run.model.config.num_positions // 2


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"--input: no file {path}; accepted: a file")
    return path.read_bytes()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as file:
        file.write(data)


# The words that may follow the command: what each does, and its flags.
WORDS: dict[str, tuple[Callable[[list[str]], None], type]] = {
    "encode": (encode, EncodeFlags),
    "decode": (decode, DecodeFlags),
    "quantise": (quantise_run, QuantiseFlags),
    "estimate": (estimates.estimate, estimates.EstimateFlags),
    "joint": (estimates.joint, estimates.JointFlags),
}


def main(argv: list[str]) -> None:
    word = argv[1] if len(argv) > 1 else ""
    if word.startswith("-") and asks_for_help(argv):
        word, argv = "encode", [argv[0], word, *argv[1:]]
    one_of("compress", word, WORDS)
    WORDS[word][0]([argv[0], *argv[2:]])


if __name__ == "__main__":
    cli.run(main, EncodeFlags)
