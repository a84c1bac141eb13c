"""What every layer of a white box does to the coding rate and to sparsity."""

import jax

from crate_jax.analysis import figures, layerwise
from crate_jax.data import subset
from crate_jax.models.trace import READINGS
from crate_jax.parallel.sharding import tree_shardings
from crate_jax.reports.base import Figure, SectionResult, Table, TrainedRun

TEXT = (
    "Measured on {count:,} test examples, with the untrained network of the same seed and with the trained one. The coding "
    "rate is the metric of CRATE's released code, in nats: R^c of U_kᵀ LayerNorm(Z), every token of every head scaled to "
    "unit length, ε² = 0.01, summed over the heads. It is not R^c of the tokens Z themselves, which may rise where this one "
    "falls. It is taken of the tokens that enter MSSA (“before”) and of those that leave its skip connection, both seen "
    "through the same layer's U. The non-zero fraction is ‖Z‖₀/(d n) of the output of ISTA."
)


def make(trained: TrainedRun) -> SectionResult | None:
    """Readings of every layer before and after training; nothing for a black box."""
    run = trained.run
    if run.model.readings is None:
        return None
    sample = run.data.eval_batches(subset.spread(run.data.source("test"), layerwise.MAX_EXAMPLES))
    read = layerwise.make_reader(run.model, run.task, run.mesh)
    shardings = tree_shardings(run.model.abstract_params, run.mesh)
    initial = jax.jit(run.model.init, out_shardings=shardings)(jax.random.key(run.config.seed))
    measured = {
        "initial": layerwise.measure(read, initial, sample, run.mesh),
        "trained": layerwise.measure(read, trained.params, sample, run.mesh),
    }
    count = min(layerwise.MAX_EXAMPLES, run.info.num_examples["test"])
    before, after = (measured["trained"][name]["mean"] for name in ("coding_rate_before", "coding_rate"))
    lower = sum(a < b for a, b in zip(after, before, strict=True))
    alt = (
        "Left: the released coding rate metric before and after MSSA by layer, untrained and trained. In the trained "
        f"network MSSA lowers its mean in {lower} of {len(after)} layers; after the last MSSA it is {after[-1]:.4g} nats. "
        "Right: the fraction of non-zero entries after ISTA by layer, "
        f"{measured['trained']['nonzero_fraction']['mean'][-1]:.3f} in the last layer of the trained network."
    )
    title = f"{trained.title}, {count:,} test examples"
    return SectionResult(
        title="Layer by layer",
        text=TEXT.format(count=count),
        values=measured,
        tables=[_table(measured["trained"])],
        figures=[Figure("layerwise.png", figures.layerwise(**measured, title=title), alt)],
    )


def _table(readings: layerwise.Measurement) -> Table:
    readings = {name: readings[name] for name in READINGS}
    names = [name.replace("_", " ") for name in readings]
    depth = len(readings["coding_rate"]["mean"])
    return Table(
        "the trained network, layer by layer (mean ± standard deviation over examples)",
        ["layer", *names],
        [
            [layer + 1, *(f"{v['mean'][layer]:.3f} ± {v['std'][layer]:.3f}" for v in readings.values())]
            for layer in range(depth)
        ],
    )
