"""Compare what models represent, layer by layer: scores, what chance gives, how both change with the number of samples.

    python -m crate_jax.align --models=runs/crate,runs/vit
    python -m crate_jax.align --models=a.npz,b.safetensors,runs/igpt@untrained --measures=mutual_knn,cka --unbiased
    python -m crate_jax.align --models=runs/crate,runs/vit --stitch --rosetta
    python -m crate_jax.align --models=runs/crate,letters --paired=digits --many

Each model is a run's folder (`RUN@untrained`: as it started) or a file of features (npz, npy, safetensors) whose arrays
`[n, d]` are layers; all see the same samples in the same order. With --paired=digits or --paired=FOLDER the first is a run
of images and the second a run of text, or `letters`, which counts pieces of words. Writes align.json and pictures to --out.
"""

import dataclasses
import inspect
import itertools
import json
from pathlib import Path

import numpy as np

from crate_jax import InputError, alignment
from crate_jax.analysis import alignment as analysis
from crate_jax.analysis import alignment_figures, paired, representations, stitching
from crate_jax.runs import cli
from crate_jax.runs.console import console, wide_table
from crate_jax.runs.metrics import write_atomically
from crate_jax.settings import LARGEST_SEED, REQUIRED, one_of, setting

FORMS = ("paper", "platonic", "aristotelian", "resi")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What to compare and how."""

    models: tuple[str, ...] = setting(
        REQUIRED, "Runs and files of features, separated by commas: two or more."
    )
    out: Path = setting(Path("runs/align"), "Folder of what is written.")
    measures: tuple[str, ...] = setting(("mutual_knn", "cka"), f"Of {', '.join(alignment.MEASURES)}.")
    k: int = setting(10, "Number of neighbours, for measures on neighbours.", least=1)
    form: str | None = setting(None, "Whose form of a measure; if left out, the paper's.", choices=FORMS)
    unbiased: bool = setting(False, "The unbiased estimate of CKA.")
    layers: tuple[int, ...] = setting((), "Only these layers of each model, counted from 1.", least=1)
    split: str = setting("test", "Of the data of runs.", choices=("train", "test"))
    samples: int = setting(1024, "At most so many samples, evenly spread; 0: all.", least=0)
    permutations: int = setting(500, "Permutations of the null.", least=1)
    resamples: int = setting(100, "Resamples of the bootstrap interval; 0: none.", least=0)
    seed: int = setting(0, "Of permutations and resamples.", least=0, most=LARGEST_SEED)
    checkpoint: str = setting("latest", "Of runs: latest, best or a step.")
    stitch: bool = setting(False, "Put a linear map of each layer in the place of the other model's layers.")
    rosetta: bool = setting(False, "List single units that fire alike.")
    paired: str | None = setting(
        None,
        "Pairs of images and texts: digits, or a folder of images with captions.txt (FILE, tab, CAPTION).",
    )
    many: bool = setting(False, "Pair each image with several texts, and each text with several images.")


def main(argv: list[str]) -> None:
    flags = cli.parse(argv, Flags)
    if len(flags.models) < 2:
        raise InputError(f"--models: found {len(flags.models)}; accepted: two or more, separated by commas")
    if flags.many and flags.paired is None:
        raise InputError("--many has no effect without --paired")
    measures = {name: make_measure(name, flags) for name in flags.measures}
    found = with_labels([representations.choose(model, flags.layers) for model in read(flags)])
    if flags.stitch:
        stitching.labels_of(found[0])
    console.print("; ".join(f"{model.name}: {len(model.layers)} layers" for model in found), markup=False)
    out = cli.folder(str(flags.out))
    out.mkdir(parents=True, exist_ok=True)
    written, pairs = [], []
    for first, second in itertools.combinations(found, 2):
        results = [compare(first, second, name, one, flags) for name, one in measures.items()]
        pairs.append(results)
        picture = out / f"{_plain(first.name)}--{_plain(second.name)}.png"
        title = f"{first.name} and {second.name}"
        write_atomically(picture, alignment_figures.comparison(results, title=title))
        written.append(picture)
    text: dict = {"comparisons": [result.as_json() for results in pairs for result in results]}
    table([result for results in pairs for result in results])
    if len(found) > 2:
        write_atomically(out / "models.png", models_picture(found, pairs, list(measures)))
        written.append(out / "models.png")
    for name, wanted in (("stitch", flags.stitch), ("rosetta", flags.rosetta)):
        if wanted:
            text[name] = [EXTRAS[name](*two, flags) for two in itertools.combinations(found, 2)]
    write_atomically(out / "align.json", json.dumps(text, indent=1) + "\n")
    console.print(f"written: {', '.join(map(str, [out / 'align.json', *written]))}", markup=False)


def with_labels(found: list[representations.Representation]) -> list[representations.Representation]:
    """All models with the labels that one of them knows: they see the same samples."""
    known = [model.labels for model in found if model.labels is not None]
    return [
        dataclasses.replace(model, labels=known[0]) if known and model.labels is None else model
        for model in found
    ]


def make_measure(name: str, flags: Flags) -> alignment.Measure:
    """The measure with those of the flags that it has.

    Raises:
      InputError: no such measure, or a form that it does not have.
    """
    one_of("--measures", name, alignment.MEASURES)
    given = {"k": flags.k, "form": flags.form, "unbiased": flags.unbiased or None}
    accepted = inspect.signature(alignment.MEASURES[name]).parameters
    chosen = {key: value for key, value in given.items() if value is not None and key in accepted}
    return alignment.measure(name, **chosen)


def read(flags: Flags) -> list[representations.Representation]:
    """The models on the samples that the flags ask for."""
    if flags.paired is not None:
        return paired.load(
            flags.models,
            flags.paired,
            samples=flags.samples,
            many=flags.many,
            seed=flags.seed,
            checkpoint=flags.checkpoint,
        )
    found = [
        representations.load(source, split=flags.split, checkpoint=flags.checkpoint, samples=flags.samples)
        for source in flags.models
    ]
    if len({model.name for model in found}) == len(found):
        return found
    return [
        dataclasses.replace(model, name=source) for model, source in zip(found, flags.models, strict=True)
    ]


def compare(first, second, name, measure, flags) -> analysis.Result:
    """One measure of two models, with a curve where there are samples for one."""
    n = len(first.layers[0])
    best = float(flags.k) if name == "lcs_knn" else 1.0
    return analysis.compare(
        first,
        second,
        measure,
        best=best,
        permutations=flags.permutations,
        resamples=flags.resamples,
        sizes=analysis.curve_sizes(n, max(32, 3 * flags.k)),
        seed=flags.seed,
    )


def table(results: list[analysis.Result]) -> None:
    """Prints one row per comparison: what was found beside what chance gives."""
    rows = []
    for result in results:
        maximum, (i, j) = result.compared.maximum, result.compared.best
        chance = "" if result.chance is None else f"{result.chance:.4f}"
        spread = "" if result.interval is None else f"{result.interval[0]:.3f} to {result.interval[1]:.3f}"
        rows.append(
            [
                " – ".join(result.models),
                result.measure,
                f"{result.layers[0][i]}, {result.layers[1][j]}",
                f"{maximum.score:.4f}",
                spread,
                chance,
                f"{maximum.null_mean:.4f}",
                f"{maximum.threshold:.4f}",
                f"{maximum.z:.1f}",
                f"{maximum.p:.3g}",
                f"{maximum.calibrated:.4f}",
            ]
        )
    columns = ["models", "measure", "layers", "highest", "95 %", "chance, one pair", "null", "threshold"]
    title = f"Highest score over pairs of layers, n = {results[0].samples:,}; the null repeats the maximum"
    wide_table(title, [*columns, "z", "p", "calibrated"], rows)


def models_picture(found, pairs, names) -> bytes:
    """The calibrated maxima of all pairs of models."""
    labels = [model.name for model in found]
    tables = {}
    for k, name in enumerate(names):
        values = np.full((len(found), len(found)), np.nan)
        both = itertools.combinations(range(len(found)), 2)
        for (i, j), results in zip(both, pairs, strict=True):
            values[i, j] = values[j, i] = results[k].compared.maximum.calibrated
        tables[name] = values
    return alignment_figures.models(labels, tables, title="Alignment of all pairs of models")


def stitch(first, second, flags) -> dict:
    """Both directions; prints the best pair of layers of each."""
    out = []
    for a, b in ((first, second), (second, first)):
        found = stitching.stitch(a, b, seed=flags.seed)
        i, j = np.unravel_index(found.accuracy.argmax(), found.accuracy.shape)
        console.print(
            f"stitching layer {a.names[i]} of {a.name} into layer {b.names[j]} of {b.name}: accuracy "
            f"{found.accuracy[i, j]:.3f}, the layer itself {found.own[j]:.3f}, "
            f"a map fitted to shuffled samples {found.shuffled[i, j]:.3f}",
            markup=False,
        )
        out.append(
            {
                "from": a.name,
                "into": b.name,
                **{field: value.tolist() for field, value in vars(found).items()},
            }
        )
    return {"directions": out}


def rosetta(first, second, flags) -> dict:
    """Prints how many units match, and the ten that do best."""
    found = stitching.rosetta(first, second, seed=flags.seed)
    console.print(
        f"{len(found.matches)} pairs of units of {first.name} and {second.name} are each other's best match; {found.above} "
        f"correlate above {found.threshold:.3f}, which 5 % of permutations reach anywhere",
        markup=False,
    )
    columns = ["layer", "unit", "layer", "unit", "correlation"]
    rows = [[a, i, b, j, f"{value:.3f}"] for a, i, b, j, value in found.matches[:10]]
    wide_table(f"Units of {first.name} and {second.name} that fire alike", columns, rows)
    return {"models": [first.name, second.name], **dataclasses.asdict(found)}


EXTRAS = {"stitch": stitch, "rosetta": rosetta}


def _plain(name: str) -> str:
    return "".join(character if character.isalnum() or character in "-_." else "-" for character in name)


if __name__ == "__main__":
    cli.run(main, Flags)
