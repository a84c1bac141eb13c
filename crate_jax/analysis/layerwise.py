"""What every layer does to the sparse rate reduction objective, measured on data: the experiment of CRATE's section 3.1.

While a model trains, `make_reader` reads a few numbers of its layers; `look` measures a trained one in all of `forms.FORMS`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from crate_jax.analysis import forms
from crate_jax.models import Model
from crate_jax.models.trace import POINTS
from crate_jax.parallel.sharding import replicated, shard_batch
from crate_jax.tasks import Task

# What the readings of a model in training are, for people.
READ = {
    "coding_rate_before": "released R^c before MSSA",
    "coding_rate": "released R^c after MSSA",
    "paper_coding_rate_before": "R^c of Z before MSSA",
    "paper_coding_rate": "R^c of Z after MSSA",
    "nonzero_fraction": "non-zero after ISTA",
}
# The papers average over a thousand samples.
MAX_EXAMPLES = 1000
# The steps of a layer: from which point to which.
STEPS = {
    "attention": ("before", "after_attention"),
    "second_half": ("after_attention", "after_layer"),
    "layer": ("before", "after_layer"),
}
STATISTICS = ("frobenius_norm", "effective_rank", "participation_ratio", "nonzero_fraction", "hoyer")

# reading → statistic ("mean", "std") → one number a layer
Measurement = dict[str, dict[str, list[float]]]
Values = Mapping[str, np.ndarray]


def make_reader(model: Model, task: Task, mesh: Mesh):
    """`read(params, batch)` returns `(readings, mask)`: each of the model's readings as `[depth, batch]`, and which
    examples count, on every process.
    """

    def read(params, batch):
        return model.apply(params, task.inputs(batch), trace=model.readings)[1], batch["mask"]

    return jax.jit(read, out_shardings=replicated(mesh))


class Moments:
    """Mean and standard deviation of a stream of examples, in memory that does not depend on their number."""

    def __init__(self):
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Values `[…, examples]` (Chan, Golub and LeVeque 1979: sums of squares are taken around their own mean)."""
        values = np.asarray(values, np.float64)
        count, mean = values.shape[-1], values.mean(axis=-1)
        squares = np.square(values - mean[..., None]).sum(axis=-1)
        total, shift = self.count + count, mean - self.mean
        self.squares = self.squares + squares + shift**2 * (self.count * count / total)
        self.mean, self.count = self.mean + shift * (count / total), total

    @property
    def std(self) -> np.ndarray:
        """With the number of examples in the denominator."""
        return np.sqrt(self.squares / self.count)


def measure(
    read, params, batches: Iterable[dict[str, np.ndarray]], mesh: Mesh, *, derive: Callable[[Values], Values] = dict
) -> Measurement:  # fmt: skip
    """Mean and standard deviation over examples of every reading of every layer, in one pass and constant memory.

    Args:
      read: from `make_reader`.
      batches: padded evaluation batches; examples whose `mask` is 0 do not count.
      derive: from the readings of a batch to what is averaged, `[depth, examples]` each.
    """
    moments: dict[str, Moments] = {}
    for batch in batches:
        values, mask = jax.device_get(read(params, shard_batch(batch, mesh)))
        real = {name: np.asarray(value, np.float64)[..., mask > 0] for name, value in values.items()}
        if not mask.any():
            continue
        for name, value in derive(real).items():
            moments.setdefault(name, Moments()).add(value)
    return {name: {"mean": m.mean.tolist(), "std": m.std.tolist()} for name, m in moments.items()}


class Observer:
    """Measures every layer of a model in the three forms; one compiled function for all parameters, data and ε².

    Args:
      random: bases `[depth, k, d, p]` for the null, from `forms.random_bases`; None for a black box.
    """

    def __init__(self, model: Model, task: Task, mesh: Mesh, random: jax.Array | None = None):
        self.mesh, self.random, self.white = mesh, random, model.readings is not None
        self.penalty = getattr(model.config, "penalty", 0.1) * model.config.sequence_length * model.config.dim

        def read(params, batch, factor, random):
            trace = forms.reading(factor, random)
            return model.apply(params, task.inputs(batch), trace=trace)[1], batch["mask"]

        self._read = jax.jit(read, out_shardings=replicated(mesh))

    def __call__(self, params, batches: Iterable[dict[str, np.ndarray]], factors=(1.0,)) -> Measurement:
        """What `named` lists, for each factor that the ε² of the forms is multiplied with; one pass over the data."""

        def read(params, batch):
            found = [self._read(params, batch, np.float32(factor), self.random) for factor in factors]
            values = {
                (name, factor): value
                for factor, (values, _) in zip(factors, found, strict=True)
                for name, value in values.items()
            }
            return values, found[0][1]

        def derive(values):
            return {name: value for factor in factors for name, value in self._named(values, factor).items()}

        return measure(read, params, batches, self.mesh, derive=derive)

    def _named(self, values, factor: float) -> dict[str, np.ndarray]:
        values = {name: value for (name, of), value in values.items() if of == factor}
        return named(values, factor=factor, white=self.white, penalty=self.penalty)


def named(values: Values, *, factor: float = 1.0, white: bool, penalty: float) -> dict[str, np.ndarray]:
    """Readings of `forms.reading` `[depth, P, …, b]` and what follows from them, by name, `[depth, b]` each.

    - `effective_rank/POINT` and the other STATISTICS, `code_nonzero_fraction`.
    - `FORM/QUANTITY/POINT`: rate R, subspace_rate R^c, random_subspace_rate (R^c with random bases), rate_reduction R − R^c,
      sparse_rate_reduction R − R^c − λ‖Z‖₀ and ratio R^c/R.
    - `FORM/QUANTITY/change/STEP`, (after − before)/before of the two R^c, R and the ratio, and `FORM/QUANTITY/lowered/STEP`,
      1 where the step lowers it: its mean is a share of the examples.
    - With ε² times a factor other than 1, `FORM@ε²/…` in place of `FORM/…`.

    Args:
      penalty: λ n d of the last term, nats where all entries count.
    """
    points = list(POINTS)[-values["frobenius_norm"].shape[1] :]
    found = {f"{name}/{point}": values[name][:, i] for name in STATISTICS for i, point in enumerate(points)}
    if "code_nonzero_fraction" in values:
        found["code_nonzero_fraction"] = values["code_nonzero_fraction"]
    for f, form in enumerate(forms.FORMS if white else ("paper", "scale_free")):
        label = form if factor == 1 else f"{form}@{factor * forms.FORMS[form].eps_sq:g}"
        rates = {name: value[:, :, f] for name, value in values.items() if name.endswith("rate")}
        if white:
            rates["rate_reduction"] = rates["rate"] - rates["subspace_rate"]
            zeros = penalty * values["nonzero_fraction"]
            rates["sparse_rate_reduction"] = rates["rate_reduction"] - zeros
            rates["ratio"] = rates["subspace_rate"] / np.maximum(rates["rate"], 1e-30)
        for quantity, value in rates.items():
            at = dict(zip(points, np.moveaxis(value, 1, 0), strict=True))
            found |= {f"{label}/{quantity}/{point}": each for point, each in at.items()}
            for step, (start, end) in STEPS.items():
                if start in at:
                    found[f"{label}/{quantity}/lowered/{step}"] = (at[end] < at[start]).astype(np.float64)
                    if not quantity.endswith("reduction"):
                        change = at[end] / np.maximum(at[start], 1e-30) - 1
                        found[f"{label}/{quantity}/change/{step}"] = change
    return found


def as_metrics(measurement: Measurement) -> dict[str, float]:
    """`{"layer/03/coding_rate": …}`, means only."""
    return {
        f"layer/{layer:02d}/{name}": value
        for name, statistics in measurement.items()
        for layer, value in enumerate(statistics["mean"])
    }


def signs(measurement: Mapping[str, Any], form: str, quantity: str = "subspace_rate") -> str:
    """What MSSA does to a rate in the mean over examples, as a sentence's end: "raises it in all 6 layers, by 3 to 51 %"."""
    change = [100 * value for value in measurement[f"{form}/{quantity}/change/attention"]["mean"]]
    parts = []
    for verb, values in (("raises", [c for c in change if c > 0]), ("lowers", [-c for c in change if c < 0])):
        if values:
            everywhere = len(values) == len(change)
            where = f"all {len(change)} layers" if everywhere else f"{len(values)} of {len(change)} layers"
            low, high = (
                f"{value:.1g}" if value < 1 else f"{value:.0f}" for value in (min(values), max(values))
            )
            parts.append(f"{verb} it in {where}, by {low if low == high else f'{low} to {high}'} %")
    return " and ".join(parts) or "leaves it as it is in every layer"
