"""An ideal world: two modalities of the same events are learned apart, and come to the same kernel, the events' PMI.

    python -m crate_jax.world
    python -m crate_jax.world --workdir=runs/world
    python -m crate_jax.world --events=100 --window=2 --loss=infonce --length=300000

Each observer trains on which of its observations occur near each other; the kernel of its features is compared, off the
diagonal and up to a constant, with the pointwise mutual information (PMI) of the world, which is known exactly, and with the
other observer's. Writes world.json and world.png to the workdir.
"""

import dataclasses
import json

from crate_jax import InputError
from crate_jax.analysis import contrastive, ideal
from crate_jax.analysis.contrastive import Recipe
from crate_jax.runs import cli
from crate_jax.runs.console import console, progress, wide_table
from crate_jax.runs.metrics import write_if_possible
from crate_jax.settings import LARGEST_SEED, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The world, what is seen of it, and how it is learned."""

    events: int = setting(64, "Different events.", least=5, most=4096)
    window: int = setting(4, "Events at most so many steps apart occur together.", least=1)
    length: int = setting(1_000_000, "Events in the sequence that each observer sees.", least=100)
    loss: str = setting("nce", "Contrastive loss.", choices=contrastive.LOSSES)
    steps: int = setting(1000, "Training steps, each on all pairs.", least=1)
    width: int = setting(64, "Width of both models; a multiple of 4.", least=4)
    depth: int = setting(2, "Blocks of both models.", least=1)
    curve_steps: int = setting(500, "Steps of the trainings behind the curves; 0: no curves.", least=0)
    permutations: int = setting(999, "Shuffled pairings; the smallest p is 1/(permutations + 1).", least=1)
    seed: int = setting(
        0, "Of the world, the observations, the sequences and the models.", least=0, most=LARGEST_SEED
    )
    workdir: str = setting("runs/world", "The folder to write to.")


def main(argv: list[str]) -> None:
    flags = cli.parse(argv, Flags)
    workdir = cli.folder(flags.workdir)
    if flags.width % 4:
        raise InputError(f"--width: found {flags.width}; accepted: a multiple of 4, the number of heads")
    if flags.window >= flags.length:
        raise InputError(f"--window: found {flags.window}; accepted: below --length {flags.length:,}")
    settings = ideal.Settings(
        recipe=Recipe(flags.loss, flags.steps, flags.seed),
        **{
            field.name: getattr(flags, field.name)
            for field in dataclasses.fields(ideal.Settings)
            if field.name != "recipe"
        },
    )
    with progress("observers trained", ideal.trainings(settings)) as advance:
        result = ideal.experiment(settings, advance)
    wide_table(
        f"{flags.events} events, off the diagonal and up to a constant", list(ideal.HEADERS), result.rows()
    )
    for title, first, curve in (
        ("Correlation against data", "events seen", result.data),
        ("Correlation against capacity", "features", result.capacity),
    ):
        if curve["both"]:
            columns = [first, *(f"{name} with PMI" for name in ideal.MODALITIES), "pictures with words"]
            rows = [
                [f"{curve['both'][i][0]:,}", *(f"{points[i][1]:.4f}" for points in curve.values())]
                for i in range(len(curve["both"]))
            ]
            wide_table(title, columns, rows)
    numbers = {"settings": dataclasses.asdict(flags), **result.numbers()}
    files = {"world.json": json.dumps(numbers, indent=1) + "\n", "world.png": ideal.picture(result)}
    written = [
        str(workdir / name) for name, content in files.items() if write_if_possible(workdir / name, content)
    ]
    if written:
        console.print(f"written: {', '.join(written)}", markup=False)


if __name__ == "__main__":
    cli.run(main, Flags)
