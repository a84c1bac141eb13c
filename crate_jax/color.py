"""Colours placed by co-occurrence, in photographs or in language, beside where people see them.

    python -m crate_jax.color
    python -m crate_jax.color --input=data/photos --grid=5 --radius=8
    python -m crate_jax.color --text=books/ --window=8
    python -m crate_jax.color --embedding=glove.txt

Counts which colours lie near each other in images (scikit-learn's two photographs, unless --input names others), takes the
pointwise mutual information (PMI) as how alike they are, places them in three dimensions by metric MDS and turns these onto
CIELAB. Writes color.json and color.png to the workdir.
"""

import dataclasses
import json
from pathlib import Path

from crate_jax import InputError
from crate_jax.analysis import color, cooccurrence
from crate_jax.runs import cli
from crate_jax.runs.console import console, wide_table
from crate_jax.runs.metrics import write_if_possible
from crate_jax.settings import setting

# Of the sensitivity table: the paper says neither which grid it took nor what it did about pairs that never occur.
GRIDS = (3, 4, 5, 6, 8)
PRIORS = (1.0, 0.1, 0.01)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Which images or language, how co-occurrence is counted, and how much work is done."""

    input: Path | None = setting(None, "A folder of images; if left out, scikit-learn's two photographs.")
    images: int = setting(2000, "Images that are read of a folder that holds more; drawn at random.", least=1)
    grid: int = setting(4, "Steps a channel of sRGB: a colour is a cell of this grid.", least=2, most=16)
    radius: float = setting(4.0, "The greatest distance of a pair of pixels.", least=1, most=1000)
    pairs: int = setting(300_000, "Pairs of pixels.", least=1, most=10**8)
    least: int = setting(20, "Colours that are fewer ends of pairs are left out.", least=1)
    prior: float = setting(1.0, "Weight of the prior towards independence, in pairs; 0: none.", least=0)
    text: Path | None = setting(None, "A text, or a folder of .txt files, whose colour words are placed too.")
    window: int = setting(10, "The greatest distance of a pair of colour words, in words.", least=1)
    embedding: Path | None = setting(None, "A file of word vectors whose colour words are placed too.")
    fits: int = setting(20, "Random starts of the MDS, of which the best is kept.", least=1)
    permutations: int = setting(999, "Of the tests; the smallest p is 1/(permutations + 1).", least=1)
    seed: int = setting(0, "Of the pairs, the MDS and the permutations.", least=0)
    workdir: str = setting("runs/color", "The folder to write to.")


def main(argv: list[str]) -> None:
    flags = cli.parse(argv, Flags)
    workdir = cli.folder(flags.workdir)
    work = {"fits": flags.fits, "permutations": flags.permutations, "seed": flags.seed}
    language = []  # Read first: a file that is not there stops before any work.
    if flags.text is not None:
        counts = cooccurrence.word_counts(read_text(flags.text), color.word_colors(), window=flags.window)
        console.print(f"text: {int(counts.counts.sum()) // 2:,} pairs of colour words", markup=False)
        language.append(color.from_counts(f"text {flags.text.name}", counts, prior=flags.prior))
    if flags.embedding is not None:
        language.append(color.read_embedding(flags.embedding))
    images = color.read_images(flags.input, limit=flags.images, seed=flags.seed)
    pairs = cooccurrence.pixel_pairs(images, radius=flags.radius, count=flags.pairs, seed=flags.seed)

    def pixels(grid: int, prior: float) -> color.Measured:
        counts = cooccurrence.colour_counts(pairs, grid=grid, least=flags.least)
        name = f"{len(images):,} images, grid {grid}, prior {prior:g}"
        return color.measure(color.from_counts(name, counts, prior=prior), **work)

    chosen = flags.grid, flags.prior
    found = {chosen: pixels(*chosen)}
    measured = [found[chosen], *(color.measure(each, **work) for each in language)]
    wide_table(
        "Colours by co-occurrence, against perception", list(color.HEADERS), [m.cells() for m in measured]
    )
    for other in [(grid, flags.prior) for grid in GRIDS] + [(flags.grid, prior) for prior in PRIORS]:
        if other not in found:
            try:
                found[other] = pixels(*other)
            except InputError as error:
                console.print(f"left out: {error}", markup=False)
    others = dict(sorted(found.items()))
    wide_table(
        "The same for other grids and priors", list(color.HEADERS), [m.cells() for m in others.values()]
    )
    numbers = {
        "settings": {
            key: str(v) if isinstance(v, Path) else v for key, v in dataclasses.asdict(flags).items()
        },
        "representations": [m.numbers() for m in measured],
        "sensitivity": [{"grid": grid, "prior": prior, **m.numbers()} for (grid, prior), m in others.items()],
    }
    files = {"color.json": json.dumps(numbers, indent=1) + "\n", "color.png": color.picture(measured)}
    written = [
        str(workdir / name) for name, content in files.items() if write_if_possible(workdir / name, content)
    ]
    if written:
        console.print(f"written: {', '.join(written)}", markup=False)


def read_text(path: Path) -> str:
    """A text file, or the .txt files of a folder and of those in it, one after the other.

    Raises:
      InputError: nothing there, or no text in the folder.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.txt"))
    if not files:
        raise InputError(f"--text: no file and no folder of .txt files {path}; accepted: one of them")
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


if __name__ == "__main__":
    cli.run(main, Flags)
