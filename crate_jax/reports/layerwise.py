"""What every layer does to the sparse rate reduction: the objective in three named forms, norms, ranks and sparsity."""

from collections.abc import Mapping, Sequence

import jax

from crate_jax import InputError
from crate_jax.analysis import forms, layer_figures, layerwise
from crate_jax.analysis.layer_figures import NAMES, SYMBOLS, label_of
from crate_jax.analysis.layerwise import Measurement
from crate_jax.data import subset
from crate_jax.parallel.sharding import replicated, tree_shardings
from crate_jax.reports.base import Figure, SectionResult, Table, TrainedRun

WHITE = (
    "What MSSA does to Rᶜ, in the mean over {count:,} {examples}: in form “paper” it {paper}; in form “released” it "
    "{released}; in form “scale-free” it {scale_free}."
    "\n\n"
    "R is the coding rate of an example's tokens, Rᶜ that of their parts in the subspaces of the layer's U, in nats; "
    "before MSSA, after it (with its skip connection) and after ISTA, all seen through the same layer's U. Three forms, "
    "which need not agree: “paper” takes the tokens Z themselves (Eq. 7 and 8, ε² = 0.5); “released” is the metric of "
    "CRATE's released code, heads of LayerNorm(Z) with every token at unit length, ε² = 0.01 (the code has no R; ours is "
    "that of LayerNorm(Z) with tokens at unit length); “scale-free” scales the tokens to a mean squared length of 1, so "
    "that growth of the residual stream is not counted as rate (ε² = 0.5). λ = {penalty:g}."
    "\n\n"
    "Beside every curve stand two nulls: the untrained network of the same seed, and the trained network's tokens with "
    "random orthonormal U of the same Frobenius norms. Where they read like the trained network, a curve says nothing "
    "about what U has learned."
)
BLACK = (
    "Measured on {count:,} {examples}, with the untrained network of the same seed and with the trained one. R is the"
    " coding rate of an example's tokens, in nats: of the tokens themselves (“paper”, Eq. 7, ε² = 0.5) and scaled to "
    "a mean squared length of 1 (“scale-free”, ε² = 0.5). There is no Rᶜ: this family has no subspaces U. With shares"
    " of energy σ², σ the singular values of the tokens, the effective rank is exp(−Σ share log share), the "
    "participation ratio 1/Σ share²."
)


# Columns of a table.
STATISTICS = {
    "frobenius_norm": "Frobenius norm",
    "effective_rank": "effective rank",
    "participation_ratio": "participation ratio",
    "nonzero_fraction": "non-zero fraction",
    "hoyer": "Hoyer's sparseness",
}


def make(trained: TrainedRun) -> SectionResult:
    """The readings of every layer, trained and untrained."""
    run = trained.run
    white = run.model.readings is not None
    examples = trained.examples(layerwise.MAX_EXAMPLES)
    shardings = tree_shardings(run.model.abstract_params, run.mesh)
    initial = jax.jit(run.model.init, out_shardings=shardings)(jax.random.key(run.config.seed))
    random = random_bases(trained) if white else None
    observe = layerwise.Observer(run.model, run.task, run.mesh, random)
    batches = trained.batches(examples)
    measured = {
        "initial": observe(initial, batches),
        "trained": observe(trained.params, batches, forms.DECADES if white else (1.0,)),
    }
    if trained.images is None and (training := training_examples(trained)) is not None:
        measured["training_examples"] = observe(trained.params, trained.batches(training))
    about = {"count": len(examples), "examples": trained.examples_are}
    if white:
        about["penalty"] = getattr(run.config.model, "penalty", 0.1)
        about |= {form: layerwise.signs(measured["trained"], form) for form in forms.FORMS}
    values = {
        "definitions": {
            name: {"eps_sq": form.eps_sq, "of": form.definition} for name, form in forms.FORMS.items()
        },
        **{name: about[name] for name in about if name not in forms.FORMS},
        **measured,
    }
    return SectionResult(
        title="Layer by layer",
        text=(WHITE if white else BLACK).format(**about),
        values=values,
        tables=[
            *(form_table(measured, form) for form in forms.FORMS if white),
            statistics_table(measured["trained"], white),
        ],
        figures=drawings(measured, trained.lines, white),
    )


def random_bases(trained: TrainedRun) -> jax.Array:
    """The null's bases, drawn by the run's seed."""
    bases = trained.params["blocks"]["blocks"]["mssa"]["bases"]
    draw = jax.jit(forms.random_bases, out_shardings=replicated(trained.run.mesh))
    return draw(jax.random.fold_in(jax.random.key(trained.run.config.seed), 1), bases)


def training_examples(trained: TrainedRun) -> subset.Part | None:
    """As many images of the training split, without augmentation; None where they are not here."""
    try:
        return subset.spread(trained.run.data.source("train"), layerwise.MAX_EXAMPLES)
    except InputError:
        return None


def drawings(measured: Mapping[str, Measurement], lines: Sequence[dict], white: bool) -> list[Figure]:
    """All figures of the section, the main ones first."""
    trained, steps = measured["trained"], ("MSSA", "ISTA") if white else ("attention", "the MLP")
    found = []
    if white:
        for form in forms.FORMS:
            alt = f"MSSA's change of Rᶜ by layer, {label_of(form)}: in the trained network MSSA "
            alt += layerwise.signs(trained, form)
            alt += f"; with random U it {layerwise.signs(trained, form, 'random_subspace_rate')}"
            alt += f"; in the untrained network it {layerwise.signs(measured['initial'], form)}."
            found.append(Figure(f"layerwise-{form}.svg", layer_figures.changes(measured, form), alt))
    found.append(_statistic(measured, "nonzero_fraction", steps))
    quantities = ("rate", "subspace_rate", "sparse_rate_reduction") if white else ("rate",)
    for form in forms.FORMS if white else ("paper", "scale_free"):
        for quantity in (*quantities, "ratio") if white and form == "scale_free" else quantities:
            last = trained[f"{form}/{quantity}/after_layer"]["mean"]
            alt = f"{SYMBOLS[quantity]} by layer, {label_of(form)}, before {steps[0]}, after {steps[0]} and after "
            alt += f"{steps[1]}: after {steps[1]} it goes from {last[0]:.4g} in the first layer to "
            alt += f"{last[-1]:.4g} in the last, trained."
            drawn = layer_figures.rates(measured, form, quantity, steps)
            found.append(Figure(f"layerwise-{form}-{quantity}.svg", drawn, alt))
    for form in forms.FORMS if white else ():
        alt = f"MSSA's change of Rᶜ by layer for five values of ε² over decades, {NAMES[form]} form."
        found.append(Figure(f"layerwise-{form}-eps.svg", layer_figures.sweep(trained, form), alt))
    found += [
        _statistic(measured, name, steps) for name in layer_figures.STATISTICS if name != "nonzero_fraction"
    ]
    for form, prefix in (("paper", "paper_"), ("released", "")) if white else ():
        title = f"MSSA's change of Rᶜ in training: {label_of(form)}"
        drawn = layer_figures.over_training(
            lines, f"{prefix}coding_rate_before", f"{prefix}coding_rate", title
        )
        if drawn is not None:
            alt = f"MSSA's change of Rᶜ by training step, a line for each layer, {label_of(form)}, on one held-out batch."
            found.append(Figure(f"layerwise-{form}-training.svg", drawn, alt))
    return found


def _statistic(measured: Mapping[str, Measurement], name: str, steps: Sequence[str]) -> Figure:
    last = measured["trained"][f"{name}/after_layer"]["mean"]
    title = layer_figures.STATISTICS[name][0]
    alt = f"{title} by layer: after {steps[1]} it goes from {last[0]:.4g} in the first layer to {last[-1]:.4g} in the "
    alt += "last, trained."
    return Figure(f"layerwise-{name}.svg", layer_figures.statistic(measured, name, steps), alt)


def form_table(measured: Mapping[str, Measurement], form: str) -> Table:
    """R^c of a form, layer by layer."""
    trained = measured["trained"]

    def means(name: str, when: str = "trained") -> list[float]:
        return measured[when][f"{form}/{name}"]["mean"]

    change = trained[f"{form}/subspace_rate/change/attention"]
    columns = {
        "before MSSA": [f"{v:.2f}" for v in means("subspace_rate/before")],
        "after MSSA": [f"{v:.2f}" for v in means("subspace_rate/after_attention")],
        "after ISTA": [f"{v:.2f}" for v in means("subspace_rate/after_layer")],
        "MSSA changes it by %": [
            f"{100 * m:+.1f} ± {100 * s:.1f}" for m, s in zip(change["mean"], change["std"], strict=True)
        ],
        "examples where MSSA lowers it, %": [
            f"{100 * v:.0f}" for v in means("subspace_rate/lowered/attention")
        ],
        "with random U, %": [f"{100 * v:+.1f}" for v in means("random_subspace_rate/change/attention")],
        "untrained, %": [f"{100 * v:+.1f}" for v in means("subspace_rate/change/attention", "initial")],
        "ISTA changes it by %": [f"{100 * v:+.1f}" for v in means("subspace_rate/change/second_half")],
    }
    if "training_examples" in measured:
        values = means("subspace_rate/change/attention", "training_examples")
        columns["MSSA, training images, %"] = [f"{100 * v:+.1f}" for v in values]
    title = f"Rᶜ, {label_of(form)}: the trained network (± standard deviation over examples)"
    return Table(
        title,
        ["layer", *columns],
        [[n, *row] for n, row in enumerate(zip(*columns.values(), strict=True), 1)],
    )


def statistics_table(trained: Measurement, white: bool) -> Table:
    """Norm, ranks and sparsity after each layer."""
    columns = {title: trained[f"{name}/after_layer"] for name, title in STATISTICS.items()}
    if (
        white and trained["code_nonzero_fraction"] != trained["nonzero_fraction/after_layer"]
    ):  # An overcomplete D.
        columns["non-zero codes"] = trained["code_nonzero_fraction"]
    columns |= {
        f"R, {label_of(form)}": trained[f"{form}/rate/after_layer"] for form in ("paper", "scale_free")
    }
    rows = zip(
        *([f"{m:.3f} ± {s:.3f}" for m, s in zip(v["mean"], v["std"], strict=True)] for v in columns.values()),
        strict=True,
    )
    title = "tokens after the layer: the trained network (± standard deviation over examples)"
    return Table(title, ["layer", *columns], [[n, *row] for n, row in enumerate(rows, 1)])
