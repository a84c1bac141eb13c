"""The geometry of a white box: its subspaces, its dictionaries, and how well each layer can be undone."""

from typing import Any

import jax
import numpy as np

from crate_jax.analysis import figures
from crate_jax.analysis import subspaces as geometry
from crate_jax.parallel.sharding import replicated
from crate_jax.reports.base import Figure, SectionResult, Table, TrainedRun
from crate_jax.reports.looking import affordable, batches

MEASURED = 256
TEXT = (
    "The columns of U_k span the subspace of head k, those of D are the atoms of ISTA. The overlap of two subspaces "
    "is the mean squared cosine of their principal angles: 1 for the same subspace, 0 for orthogonal ones, p/d = "
    "{chance:.3f} on average for random ones of this shape. The deviation is ‖c G − I‖_F over the root of its size "
    "at the best scale c, G = U_kᵀU_k or DᵀD: 0 where the columns are orthogonal and equally long, as the "
    "derivation assumes and nothing enforces. Coherence is the largest cosine between two atoms{welch}. A layer is "
    "undone by its own operators mirrored, as CRATE-MAE's decoder has them with parameters of its own: of the codes "
    "C = ISTA(X), the error ‖X − s C Dᵀ‖/‖X‖ at the best scale s; of MSSA, the error ‖Z − (Z½ − MSSA(LN(Z½)))‖/‖Z‖, "
    "beside ‖Z − Z½‖/‖Z‖, which is that of undoing nothing. Energy is the share of the normed tokens' squared norm "
    "inside a subspace; the means are over {count:,} {examples}."
)


def make(trained: TrainedRun) -> SectionResult | None:
    """Angles, coherence, energy and inversion errors by layer; nothing for a black box."""
    run = trained.run
    if run.model.readings is None:
        return None
    measured, parameters, count = _measure(trained)
    layers = [geometry.subspaces(bases) for bases in parameters["bases"]]
    atoms = [geometry.dictionary(each) for each in parameters["dictionary"]]
    heads, dim, width = parameters["bases"].shape[1:]
    pairs = ~np.eye(heads, dtype=bool)
    mean = {name: value.mean(axis=1) for name, value in measured.items()}
    overlaps = [each.overlap[pairs].mean() if heads > 1 else 0.0 for each in layers]
    rows = [
        [
            number + 1, f"{overlap:.3f}", f"{_largest(layer.cosines, pairs):.3f}", f"{layer.deviation.mean():.2f}",
            f"{atom.coherence:.2f}", f"{atom.mean_cosine:.3f}", f"{atom.deviation:.2f}",
            f"{mean['sparsification_error'][number]:.3f}", f"{mean['compression_error'][number]:.3f}",
            f"{mean['compression_size'][number]:.3f}",
        ]
        for number, (overlap, layer, atom) in enumerate(zip(overlaps, layers, atoms, strict=True))
    ]  # fmt: skip
    columns = [
        "layer", "overlap of subspaces", "largest cosine", "deviation of U", "coherence of D", "mean cosine of D",
        "deviation of D", "error: ISTA undone", "error: MSSA undone", "error: MSSA left",
    ]  # fmt: skip
    bound = atoms[0].least_coherence
    text = TEXT.format(
        chance=width / dim,
        welch=f" (no dictionary of this shape can have less than {bound:.3f})" if bound else "",
        count=count,
        examples=trained.examples_are,
    )
    values: dict[str, Any] = {
        "examples": count,
        "overlap": [each.overlap.tolist() for each in layers],
        "random_overlap": width / dim,
        "deviation": [each.deviation.tolist() for each in layers],
        "joint_deviation": [each.joint_deviation for each in layers],
        "coherence": [each.coherence for each in atoms],
        "mean_cosine": [each.mean_cosine for each in atoms],
        "least_coherence": bound,
        "dictionary_deviation": [each.deviation for each in atoms],
        **{name: value.tolist() for name, value in mean.items()},
    }
    image = figures.subspaces(np.array([each.overlap for each in layers]), mean["energy"], chance=width / dim)
    alt = (
        f"Above: mean overlap of each subspace with the {heads - 1} others, by layer, from {min(overlaps):.3f} to "
        f"{max(overlaps):.3f} on average over heads; chance is {width / dim:.3f}. Below: share of the tokens' energy "
        "in each subspace, by layer."
    )
    caption = "Each thin line is a head, the thick line their mean, the dashed line chance."
    return SectionResult(
        "Subspaces and dictionaries",
        text,
        values,
        [Table("geometry by layer", columns, rows)],
        [Figure("subspaces.svg", image, alt, caption)],
    )


def _largest(cosines: np.ndarray, pairs: np.ndarray) -> float:
    return float(cosines[pairs][:, 0].max()) if pairs.any() else 0.0


def _measure(trained: TrainedRun) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """Readings `[layers, b, …]` of all examples, the layers' parameters, the number of examples."""
    run = trained.run
    inputs = run.task.inputs

    def look(params, batch):
        return run.model.apply(params, inputs(batch), trace=geometry.layer_reader)[1]

    def read(params, batch):
        return geometry.layer_parameters(run.model, params, inputs(batch))

    look, read = (jax.jit(each, out_shardings=replicated(run.mesh)) for each in (look, read))
    parts: dict[str, list[np.ndarray]] = {}
    parameters: dict[str, np.ndarray] = {}
    source = trained.examples(affordable(trained, MEASURED))
    for batch in batches(source):
        for name, value in jax.device_get(look(trained.params, batch)).items():
            parts.setdefault(name, []).append(value)
        parameters = parameters or jax.device_get(read(trained.params, batch))
    return {name: np.concatenate(each, axis=1) for name, each in parts.items()}, parameters, len(source)
