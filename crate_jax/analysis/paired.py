"""Two modalities: images and the texts that belong to them."""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from crate_jax import InputError
from crate_jax.analysis import representations
from crate_jax.analysis.representations import Representation
from crate_jax.data import subset
from crate_jax.runs.cli import folder
from crate_jax.training.opening import open_run

DIGITS = "digits"
LETTERS = "letters"
NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = "captions.txt"
# Dimensions of the counts of pieces of words.
PIECES = 256


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Images and the texts beside them.

    Attributes:
      examples: dicts with "image" uint8 `[h, w, c]` and "label".
      texts: one per example.
    """

    examples: list[dict]
    texts: list[str]


def load(
    sources: Sequence[str], pairs: str, *, samples: int, many: bool, seed: int, checkpoint: str
) -> list[Representation]:
    """The first model on images, the second on their texts.

    Args:
      sources: a run of labelled images, and a run of bytes or "letters".
      pairs: "digits": the digits that the run of images tests on, each with its number in words, in figures or as a sum; or
        a folder of images with a file `captions.txt`, one line `FILE <tab> CAPTION` per pair.
      samples: at most so many pairs.
      many: many-to-many. For digits, images and wordings are drawn at random, so that both occur several times; in a folder
        every line is a pair, however often a file stands there. Otherwise every image occurs once.
      seed: of the choice of texts.
      checkpoint: of the runs.
    Raises:
      InputError: other than two models, a run of something else, no captions, an image that cannot be read.
    """
    if len(sources) != 2:
        raise InputError(
            f"--models: found {len(sources)}; accepted with --paired: a run of images, a model of text"
        )
    run, params, name = representations.open_images(sources[0], checkpoint)
    found = (
        digits(run, samples, many, seed) if pairs == DIGITS else captioned(folder(pairs), run, samples, many)
    )
    images = dataclasses.replace(representations.of_images(run, params, name, found.examples), labels=None)
    if sources[1] == LETTERS:
        return [images, letters(found.texts)]
    return [images, text_model(folder(sources[1]), found.texts, checkpoint)]


def digits(run, samples: int, many: bool, seed: int) -> Pairs:
    """Test digits, each with a text of its number: the wordings in turn, or, with `many`, both drawn at random."""
    source = run.data.source("test")
    if run.info.num_classes != 10:
        raise InputError(
            f"--paired: {run.info.name} has {run.info.num_classes} classes; accepted: the ten digits"
        )
    some = subset.spread(source, min(samples or len(source), len(source)))
    examples = [some[i] for i in range(len(some))]
    generator = np.random.default_rng(seed)
    if many:
        examples = [examples[i] for i in generator.integers(0, len(examples), len(examples))]
    wordings = [texts_of(digit) for digit in range(10)]
    counts = np.zeros(10, int)
    texts = []
    for example in examples:
        digit = int(example["label"])
        place = generator.integers(len(wordings[digit])) if many else counts[digit] % len(wordings[digit])
        texts.append(wordings[digit][place])
        counts[digit] += 1
    return Pairs(examples, texts)


def texts_of(digit: int) -> list[str]:
    """A number in words, in figures and as sums and differences of numbers: different texts of one meaning."""
    sums = [f"{a}+{digit - a}" for a in range(digit + 1)]
    differences = [f"{digit + b}-{b}" for b in range(1, 20)]
    worded = [f"{NUMERALS[a]} plus {NUMERALS[digit - a]}" for a in range(digit + 1)]
    return [NUMERALS[digit], str(digit), *sums, *differences, *worded]


def captioned(path: Path, run, samples: int, many: bool) -> Pairs:
    """The pairs of a folder.

    Raises:
      InputError: no `captions.txt`, a line without a tab, an image that is missing or cannot be read.
    """
    file = path / CAPTIONS
    if not file.is_file():
        raise InputError(f"--paired: no file {file}; accepted: {DIGITS}, or a folder with {CAPTIONS}")
    names, texts = [], []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        name, tab, text = line.partition("\t")
        if not tab or not text.strip():
            raise InputError(
                f"--paired: {file}, line {number}: found {line!r}; accepted: FILE, a tab, CAPTION"
            )
        if many or name not in names:
            names.append(name)
            texts.append(text.strip())
    chosen = representations.spread(len(names), samples)
    mode = "L" if run.info.channels == 1 else "RGB"
    examples = []
    for i in chosen:
        try:
            with Image.open(path / names[i]) as image:
                pixels = np.asarray(image.convert(mode))
        except OSError as error:
            raise InputError(f"--paired: {path / names[i]} cannot be read: {error}") from None
        examples.append({"image": pixels.reshape(*pixels.shape[:2], -1), "label": np.int32(0)})
    return Pairs(examples, [texts[i] for i in chosen])


def text_model(path: Path, texts: Sequence[str], checkpoint: str) -> Representation:
    """The layers of a run of bytes on texts: layer-normed inputs of its blocks, averaged over the text's own bytes.

    Raises:
      InputError: a run of something else, or a text that is longer than the model's context.
    """
    run, params, _ = open_run(path, checkpoint)
    tokens = run.info.tokens
    if tokens is None:
        raise InputError(f"--models: {path} is of {run.info.kind}; accepted: a run of text second")
    encoded = [tokens.encode(text) for text in texts]
    length, context = max(map(len, encoded)), run.model.config.num_positions
    if length > context:
        raise InputError(
            f"--paired: found a text of {length} {tokens.unit}s; accepted: up to {context}, which {path} sees"
        )
    padded = np.zeros((len(texts), context), np.int32)
    real = np.zeros((len(texts), context), np.float32)
    for row, each in enumerate(encoded):
        padded[row, : len(each)], real[row, : len(each)] = each, 1 / len(each)

    @jax.jit
    def read(params, padded, real):
        mean = functools.partial(_mean_of_real, real=real)
        return run.model.apply(params, padded, trace=mean)[1]

    parts = [read(params, padded[i : i + 64], real[i : i + 64]) for i in range(0, len(texts), 64)]
    layers = list(np.concatenate([np.asarray(part) for part in parts], axis=1))
    return Representation(path.name, layers, [str(i + 1) for i in range(len(layers))])


def _mean_of_real(report, real):
    return jnp.einsum("bnd,bn->bd", report["normed"].astype(jnp.float32), real)


def letters(texts: Sequence[str]) -> Representation:
    """A text as counts of its pieces of one to three letters, hashed: what can be known of it without any training."""
    counts = np.zeros((len(texts), PIECES), np.float32)
    for row, text in enumerate(texts):
        padded = f" {text} "
        for size in (1, 2, 3):
            for i in range(len(padded) - size + 1):
                counts[row, zlib.crc32(padded[i : i + size].encode()) % PIECES] += 1
    return Representation(LETTERS, [np.sqrt(counts)], ["pieces"])
