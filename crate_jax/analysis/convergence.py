"""Do models converge? Alignment of many trained models against how good they are, and against what chance gives.

Huh et al. 2024 (arXiv 2405.07987), section 2: the more able models are, the more their representations should agree. Here a
model's ability is what a linear probe reads from its best layer, on the data it was trained on and on another set, and its
alignment is its mean mutual k-nearest-neighbour score with the other families' models, each pair at its best two layers.
As that score rises with the number of layers alone, the same is done with the samples of one model shuffled
(arXiv 2602.14486), with untrained models, and with raw pixels.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from scipy.stats import rankdata

from crate_jax.alignment import Measure, compare_layers, measure, score_table
from crate_jax.analysis import convergence_figure, features, linear_probe
from crate_jax.models import Params
from crate_jax.parallel.sharding import tree_shardings
from crate_jax.runs.console import progress
from crate_jax.runs.metrics import read_metrics, write_atomically
from crate_jax.training.building import Run
from crate_jax.training.opening import open_run

COMMANDS = ("train",)
HEADERS = (
    "run",
    "parameters",
    "digits %",
    "letters %",
    "aligned",
    "untrained",
    "shuffled",
    "CKA",
    "CKA untrained",
    "with pixels",
    "pixels, untrained",
)
# The data set that models are transferred to: as small and as grey as the digits.
TRANSFER = "letters"
K = 10
MEASURES = {"mutual_knn": measure("mutual_knn", k=K), "cka": measure("cka", unbiased=True)}
PERMUTATIONS = 100
# Samples of the score-against-n curve.
SIZES = (30, 60, 120, 240, 360)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network's features of the test images, `[layers, n, d]`, and what its best layers' probes reach by data set."""

    family: str
    features: np.ndarray
    probe: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Row:
    """One model of a study.

    Attributes:
      name, family, num_params: of the run.
      probe: data set → test accuracy of the linear probe, on the layer that the validation images chose.
      aligned: measure → mean over the other families, and over the models of each, of the score of the best two layers.
      untrained: the same among the networks that training started from.
      shuffled: the same for the trained ones with the samples of one model in another order.
      pixels, pixels_untrained: mutual k-NN of the best layer with the raw pixels.
      scores: mutual k-NN with every model of the study, in the order of the rows.
      curve: for the largest models: (samples, aligned, untrained, shuffled) by mutual k-NN; empty for others.
    """

    name: str
    family: str
    num_params: int
    probe: dict[str, float]
    aligned: dict[str, float]
    untrained: dict[str, float]
    shuffled: dict[str, float]
    pixels: float
    pixels_untrained: float
    scores: list[float]
    curve: list[tuple[int, float, float, float]]

    def cells(self) -> list:
        """What stands under HEADERS."""
        return [
            self.name,
            f"{self.num_params:,}",
            *(f"{100 * value:.1f}" for value in self.probe.values()),
            *(f"{each['mutual_knn']:.3f}" for each in (self.aligned, self.untrained, self.shuffled)),
            *(f"{each['cka']:.3f}" for each in (self.aligned, self.untrained)),
            f"{self.pixels:.3f}",
            f"{self.pixels_untrained:.3f}",
        ]


def read(workdir: Path, names: Iterable[str]) -> list[Row]:
    """The rows of a study from the runs that are done."""
    done = [name for name in names if _is_done(workdir / name)]
    trained, untrained, sizes = [], [], []
    with progress("networks read", len(done)) as advance:
        for name in done:
            opened = open_run(workdir / name)
            sizes.append(opened.run.model.num_params)
            trained.append(_network(opened.run, opened.params, "trained"))
            untrained.append(_network(opened.run, _initial(opened.run), "untrained", probed=False))
            advance(1)
        pixels = Network("pixels", features.extract(features.pixels(opened.run), "test").read(), {})
    families = [network.family for network in trained]
    measured = {}
    with progress("pairs of models compared", 4 * len(done) * (len(done) - 1) // 2) as advance:
        for key, each in MEASURES.items():
            measured["aligned", key], measured["shuffled", key] = _tables(
                each, trained, advance, PERMUTATIONS
            )
            measured["untrained", key], _ = _tables(each, untrained, advance)
    curves = _curves(trained, untrained, sizes)
    return [
        Row(
            name=name,
            family=families[i],
            num_params=sizes[i],
            probe=trained[i].probe,
            **{
                kind: {key: _across(measured[kind, key], families, i) for key in MEASURES}
                for kind in ("aligned", "untrained", "shuffled")
            },
            pixels=_best(MEASURES["mutual_knn"], trained[i], pixels),
            pixels_untrained=_best(MEASURES["mutual_knn"], untrained[i], pixels),
            scores=measured["aligned", "mutual_knn"][i].tolist(),
            curve=curves.get(i, []),
        )
        for i, name in enumerate(done)
    ]


def write(rows: Sequence[Row], workdir: Path) -> Path:
    """Write `convergence.json` and `convergence.png`; returns the path of the picture."""
    found = {"trends": trends(rows), "rows": [dataclasses.asdict(row) for row in rows]}
    write_atomically(workdir / "convergence.json", json.dumps(found, indent=1) + "\n")
    write_atomically(workdir / "convergence.png", convergence_figure.picture(rows, k=K))
    return workdir / "convergence.png"


def trends(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """How a model's alignment goes with its ability, its size, its start and its likeness to the pixels, over the models.

    Returns:
      name → Spearman's correlation `rho` and `p`, one-sided, from 9,999 random assignments of the alignments to the models.
      "…, pixels fixed" is the partial correlation: of what is left of both ranks after a straight line in the rank of the
      likeness to the pixels. Models that differ by a seed are not independent, which makes p smaller than it should be.
    """
    aligned, pixels = (
        _ranks(x) for x in ([row.aligned["mutual_knn"] for row in rows], [row.pixels for row in rows])
    )
    by = {
        **{f"probe on {name}": _ranks([row.probe[name] for row in rows]) for name in rows[0].probe},
        "parameters": _ranks([row.num_params for row in rows]),
        "alignment before training": _ranks([row.untrained["mutual_knn"] for row in rows]),
        "likeness to the pixels": pixels,
    }
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(len(rows)) for _ in range(9999)])
    found = {name: _correlation(aligned, ranks, orders) for name, ranks in by.items()}
    for name in rows[0].probe:
        pair = (_without(ranks, pixels) for ranks in (aligned, by[f"probe on {name}"]))
        found[f"probe on {name}, pixels fixed"] = _correlation(*pair, orders)
    return found


def _ranks(values: Sequence[float]) -> np.ndarray:
    ranks = rankdata(values)
    return ranks - ranks.mean()


def _without(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What is left of x after a straight line in y; both centred."""
    return x - (x @ y) / ((y @ y) or 1.0) * y


def _correlation(x: np.ndarray, y: np.ndarray, orders: np.ndarray) -> dict[str, float]:
    scale = np.sqrt((x @ x) * (y @ y)) or 1.0
    rho = x @ y / scale
    reached = np.sum(x[orders] @ y / scale >= rho - 1e-12)
    return {"rho": float(rho), "p": float((1 + reached) / (len(orders) + 1))}


def _is_done(run: Path) -> bool:
    lines = read_metrics(run / "metrics.jsonl")
    return bool(lines) and lines[-1].get("final", False)


def _initial(run: Run) -> Params:
    """The parameters that a run started from."""
    shardings = tree_shardings(run.model.abstract_params, run.mesh)
    return jax.jit(run.model.init, out_shardings=shardings)(jax.random.key(run.config.seed))


def _network(run: Run, params: Params, name: str, *, probed: bool = True) -> Network:
    """The features of the test images, with probes on the run's data, all labels known, and on TRANSFER."""
    with jax.set_mesh(run.mesh):
        found = features.extract(features.network(run, params, name), "test").read()
        probe = {}
        for data in (run.config.data.name, TRANSFER) if probed else ():
            extractor = features.network(_on(run, data), params, name)
            train, test = (features.extract(extractor, split) for split in ("train", "test"))
            result = linear_probe.probe(train, test, extractor.run.info.num_classes, run.mesh)
            probe[data] = float(result.accuracy[np.argmax(result.validation)])
    return Network(run.model.config.family, found, probe)


def _on(run: Run, data: str) -> Run:
    """The run on all examples of a data set, with the set's own labels."""
    changed = dataclasses.replace(run.config.data, name=data, labels_per_class=None)
    config = dataclasses.replace(run.config, data=changed)
    return open_run(run.workdir, config=config, overrides={"data.name"}, match_classes=False).run


def _tables(
    each: Measure, networks: Sequence[Network], advance: Callable[[int], None], permutations: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The score of the best pair of layers of every two networks, and the mean of its permutation null; 1 and 0 for one with
    itself."""
    scores, null = np.eye(len(networks)), np.zeros((len(networks),) * 2)
    for i, first in enumerate(networks):
        for j, second in enumerate(networks[:i]):
            if permutations:
                layers = list(first.features), list(second.features)
                best = compare_layers(each, *layers, permutations=permutations).maximum
                scores[i, j], null[i, j] = best.score, best.null_mean
            else:
                scores[i, j] = _best(each, first, second)
            advance(1)
    return scores + np.tril(scores, -1).T, null + null.T


def _best(each: Measure, first: Network, second: Network) -> float:
    return float(score_table(each, list(first.features), list(second.features)).max())


def _across(table: np.ndarray, families: Sequence[str], i: int) -> float:
    """The mean of a row over the other families, each the mean over its models; NaN where there is no other family."""
    means = [
        np.mean([table[i, j] for j, each in enumerate(families) if each == family])
        for family in dict.fromkeys(families)
        if family != families[i]
    ]
    return float(np.mean(means)) if means else float("nan")


def _curves(
    trained: Sequence[Network], untrained: Sequence[Network], sizes: Sequence[int]
) -> dict[int, list]:
    """Row → its `curve`, for the first of the largest models of each family: the same images, fewer of them."""
    families = [network.family for network in trained]
    largest = {family: max(sizes[i] for i, f in enumerate(families) if f == family) for family in families}
    chosen = [
        next(i for i, f in enumerate(families) if f == family and sizes[i] == size)
        for family, size in largest.items()
    ]
    order = np.random.default_rng(0).permutation(trained[0].features.shape[1])
    curves: dict[int, list] = {i: [] for i in chosen}
    for n in [size for size in SIZES if size <= len(order)] if len(chosen) > 1 else []:
        few = [
            [dataclasses.replace(networks[i], features=networks[i].features[:, order[:n]]) for i in chosen]
            for networks in (trained, untrained)
        ]
        each = MEASURES["mutual_knn"]
        (scores, null), (before, _) = (
            _tables(each, few[0], _ignore, PERMUTATIONS),
            _tables(each, few[1], _ignore),
        )
        for place, i in enumerate(chosen):
            others = [j for j in range(len(chosen)) if j != place]
            curves[i].append((n, *(float(table[place, others].mean()) for table in (scores, before, null))))
    return curves


def _ignore(count: int) -> None:
    del count
