"""The ideal world, measured: two observers learn what occurs near what, and come to the PMI of the events."""

import dataclasses
from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")  # No display on a server; must be chosen before pyplot is imported.
import matplotlib.pyplot as plt
import numpy as np

from crate_jax.alignment import pmi_kernel
from crate_jax.analysis import contrastive, world
from crate_jax.analysis.contrastive import Agreement, Observer, Recipe
from crate_jax.analysis.figures import BLUE, GREY, ORANGE, as_png

HEADERS = ("compared", "correlation", "slope", "residual, nats")
# Parts of the sequence, and numbers of features, of the two curves.
PARTS = (1 / 1000, 1 / 300, 1 / 100, 1 / 30, 1 / 10, 1 / 3)
FEATURES = (1, 2, 4, 8, 16, 32)
MODALITIES = ("pictures", "words")
COLORS = dict(zip(MODALITIES, (BLUE, ORANGE), strict=True))


@dataclasses.dataclass(frozen=True)
class Settings:
    """A world, what is seen of it, and how the observers learn.

    Attributes:
      events: the number of different events.
      window: two events occur near each other if at most so many steps apart.
      length: of the sequence that each observer sees.
      width, depth: of both models.
      recipe: of both trainings.
      curve_steps: of the trainings behind the curves; 0: no curves.
      permutations: shuffled pairings of the two modalities.
      seed: of the world, the observations and the sequences.
    """

    events: int
    window: int
    length: int
    width: int
    depth: int
    recipe: Recipe
    curve_steps: int
    permutations: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
      pmi: `[n, n]`, of the world itself.
      least_eigenvalue: see `world.representable`.
      kernels: modality → `[n, n]`, what its observer learned.
      learned: modality → its kernel against the PMI.
      untrained: the same before training.
      counted: modality → the PMI of its sequence's counts, which no model smoothed, against that of the world; pairs that
        never occurred are left out.
      modalities: the two observers' kernels against each other.
      shuffled: the correlations when the events of one are renamed, a list over the permutations.
      p: (1 + #{shuffled ≥ correlation})/(permutations + 1).
      data: modality → rows (length of the sequence, correlation with the PMI), and "both" → (length, with each other).
      capacity: the same with the number of features.
    """

    pmi: np.ndarray
    least_eigenvalue: float
    kernels: dict[str, np.ndarray]
    learned: dict[str, Agreement]
    untrained: dict[str, Agreement]
    counted: dict[str, Agreement]
    modalities: Agreement
    shuffled: list[float]
    p: float
    data: dict[str, list[tuple[int, float]]]
    capacity: dict[str, list[tuple[int, float]]]

    def rows(self) -> list[list]:
        """What stands under HEADERS."""
        named = {f"{name}: counts alone and PMI": each for name, each in self.counted.items()}
        named |= {f"{name}: untrained and PMI": each for name, each in self.untrained.items()}
        named |= {f"{name}: learned and PMI": each for name, each in self.learned.items()}
        named["pictures and words"] = self.modalities
        rows = [
            [name, f"{each.correlation:.4f}", f"{each.slope:.3f}", f"{each.residual:.3f}"]
            for name, each in named.items()
        ]
        shuffled = f"{np.mean(self.shuffled):.4f}, at most {max(self.shuffled):.4f}"
        return [*rows, [f"the same, shuffled {len(self.shuffled)} times (p {self.p:.3g})", shuffled, "", ""]]

    def numbers(self) -> dict:
        """The same as JSON holds it; the shuffled correlations by their mean and maximum."""
        compared = ("learned", "untrained", "counted")
        found: dict = {
            kind: {name: each._asdict() for name, each in getattr(self, kind).items()} for kind in compared
        }
        return found | {
            "modalities": self.modalities._asdict(),
            "shuffled": {"mean": float(np.mean(self.shuffled)), "max": max(self.shuffled), "p": self.p},
            "least_eigenvalue": self.least_eigenvalue,
            "pmi_deviation": float(self.pmi[~np.eye(len(self.pmi), dtype=bool)].std()),
            "data": self.data,
            "capacity": self.capacity,
        }


def experiment(settings: Settings, advance: Callable[[int], None] = lambda _: None) -> Result:
    """Make the world, let both observers learn, compare.

    The observers see different sequences, so that what they have in common is the world and not the sample.

    Args:
      settings: all that the numbers depend on.
      advance: called with 1 after each of `trainings(settings)` trainings.
    """
    n, recipe = settings.events, settings.recipe
    made = world.make_world(n, seed=settings.seed)
    pmi = np.asarray(pmi_kernel(world.cooccurrence(made, settings.window)), float)
    seen, observers = {}, make_observers(settings)
    for i, name in enumerate(MODALITIES):
        seen[name] = world.history(made, length=settings.length, seed=settings.seed + 1 + i)

    def learn(name: str, part: float = 1.0, features: int | None = None, recipe: Recipe = recipe):
        events = seen[name][: max(2, round(part * settings.length))]
        counts = world.pair_counts(events, n, settings.window)
        learned = contrastive.learn(observers[name], counts, recipe, features=features)
        advance(1)
        return learned

    def curve(argument: str, values: dict) -> dict[str, list[tuple[int, float]]]:
        short = recipe._replace(steps=settings.curve_steps)
        found: dict[str, list[tuple[int, float]]] = {name: [] for name in (*MODALITIES, "both")}
        for place, value in values.items() if settings.curve_steps else ():
            kernels = {name: learn(name, recipe=short, **{argument: value}).kernel for name in MODALITIES}
            for name in MODALITIES:
                found[name].append((place, contrastive.agreement(kernels[name], pmi).correlation))
            found["both"].append((place, contrastive.agreement(*kernels.values()).correlation))
        return found

    found = {name: learn(name) for name in MODALITIES}
    kernels = {name: each.kernel for name, each in found.items()}
    both = contrastive.agreement(*kernels.values())
    shuffled = shuffle(*kernels.values(), permutations=settings.permutations, seed=settings.seed)
    counts = {name: world.pair_counts(events, n, settings.window) for name, events in seen.items()}
    return Result(
        pmi=pmi,
        least_eigenvalue=world.representable(pmi),
        kernels=kernels,
        learned={name: contrastive.agreement(kernel, pmi) for name, kernel in kernels.items()},
        untrained={name: contrastive.agreement(each.initial, pmi) for name, each in found.items()},
        counted={name: _counted(each, pmi) for name, each in counts.items()},
        modalities=both,
        shuffled=shuffled,
        p=(1 + sum(value >= both.correlation for value in shuffled)) / (settings.permutations + 1),
        data=curve("part", {round(part * settings.length): part for part in (*PARTS, 1.0)}),
        capacity=curve("features", {count: count for count in (*(f for f in FEATURES if f < n), n)}),
    )


def trainings(settings: Settings) -> int:
    """How many models `experiment` trains."""
    curves = len(PARTS) + 1 + sum(count < settings.events for count in FEATURES) + 1
    return len(MODALITIES) * (1 + bool(settings.curve_steps) * curves)


def make_observers(settings: Settings) -> dict[str, Observer]:
    """Modality → its untrained observer, with as many features as there are events."""
    n, shape = (
        settings.events,
        {"width": settings.width, "depth": settings.depth, "features": settings.events},
    )
    return {
        "pictures": contrastive.picture_observer(world.pictures(n, seed=settings.seed), **shape),
        "words": contrastive.word_observer(world.words(n, seed=settings.seed), **shape),
    }


def shuffle(kernel: np.ndarray, other: np.ndarray, *, permutations: int, seed: int) -> list[float]:
    """The correlations of two kernels when the events of one are renamed at random."""
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(len(kernel)) for _ in range(permutations))
    return [contrastive.agreement(kernel, other[np.ix_(order, order)]).correlation for order in orders]


def _counted(counts: np.ndarray, pmi: np.ndarray) -> Agreement:
    with np.errstate(divide="ignore", invalid="ignore"):
        kernel = np.asarray(pmi_kernel(counts), float)
    return contrastive.agreement(kernel, pmi, where=np.isfinite(kernel))


def picture(result: Result) -> bytes:
    """A PNG: the three kernels, learned against PMI, and the two curves."""
    figure, panels = plt.subplots(2, 3, figsize=(13, 8))
    order = np.argsort(np.linalg.eigh(result.pmi)[1][:, -1])  # Events that occur together stand together.
    off = ~np.eye(len(result.pmi), dtype=bool)
    shown = {"PMI of the world": result.pmi, **result.kernels}
    low, high = np.quantile(result.pmi[off], [0.01, 0.99])
    for axis, (name, kernel) in zip(panels[0], shown.items(), strict=True):
        shifted = kernel - kernel[off].mean() + result.pmi[off].mean()
        image = axis.imshow(shifted[np.ix_(order, order)], cmap="cividis", vmin=low, vmax=high)
        agree = (
            f"\nr = {result.learned[name].correlation:.3f} off the diagonal" if name in result.learned else ""
        )
        axis.set_title(f"{name}{agree}", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(image, ax=panels[0], shrink=0.8, label="nats, up to a constant")
    scatter, data, capacity = panels[1]
    for name, kernel in result.kernels.items():
        scatter.plot(
            result.pmi[off],
            kernel[off] - kernel[off].mean() + result.pmi[off].mean(),
            ".",
            ms=2,
            color=COLORS[name],
            label=name,
        )
    scatter.axline((0, 0), slope=1, color=GREY, linewidth=0.8)
    scatter.set(xlabel="PMI of the world (nats)", ylabel="learned, up to a constant (nats)")
    for axis, curve, label in (
        (data, result.data, "length of the sequence (events)"),
        (capacity, result.capacity, "number of features"),
    ):
        for name, color in {**COLORS, "both": GREY}.items():
            if curve[name]:
                text = {"both": "pictures with words"}.get(name, f"{name} with PMI")
                axis.plot(*zip(*curve[name], strict=True), color=color, marker="o", ms=4, label=text)
        axis.set(
            xscale="log",
            xlabel=label,
            ylabel="correlation off the diagonal",
            ylim=(min(0, axis.get_ylim()[0]), 1.02),
        )
        axis.axhline(0.98, color=GREY, linestyle=":", linewidth=0.8)
    for axis in panels[1]:
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=8, frameon=False, markerscale=2)
    return as_png(figure)
