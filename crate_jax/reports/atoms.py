"""What single atoms and heads of a classifier are for: the images that an atom answers to, and the logits without it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import models
from crate_jax.analysis import figures, interventions
from crate_jax.analysis.atoms import Atoms, peak_reader, top_examples
from crate_jax.analysis.overlays import outlined
from crate_jax.analysis.sheets import sheet
from crate_jax.data.sources import Source
from crate_jax.parallel.sharding import replicated
from crate_jax.reports.base import Figure, Gallery, SectionResult, Table, TrainedRun
from crate_jax.reports.looking import affordable, batches

# Images that answers are looked for in, images that ablations are measured on, atoms that are shown, images of each.
MEASURED, ABLATED, SHOWN, TOP = 1000, 64, 12, 8


def make(trained: TrainedRun) -> SectionResult | None:
    """Ablations of all heads, and of the atoms of the last layer that tell classes apart; nothing but for classifiers."""
    run = trained.run
    config = run.config.model
    classifier = isinstance(config, models.ImageConfig) and run.config.task == "classify"
    if not classifier or config.family not in interventions.HEADS:
        return None
    source, first = _ablated(trained)
    heads = _ablate_heads(trained, source, first)
    values: dict[str, Any] = {
        "images_ablated": len(source),
        "first_layer": first + 1,
        "heads": {key: value.tolist() for key, value in heads.items()},
    }
    tables = [_heads_table(heads, first)]
    worst = np.unravel_index(heads["change"].argmax(), heads["change"].shape)
    alt = (
        "Change of the logits without each head, by layer. The largest is that of "
        f"layer {first + worst[0] + 1}, head {worst[1] + 1}: {heads['change'][worst]:.2f}."
    )
    caption = "Change of the logits, ‖Δ‖/‖logits‖, without one head."
    drawn = [Figure("heads.svg", figures.heads(heads["change"], first), alt, caption)]
    galleries, text = [], _head_text(trained, len(source), first)
    if config.family in interventions.ATOMS:
        looked_at = trained.examples(affordable(trained, MEASURED))
        atoms = _find(trained, looked_at)
        shown = _most_selective(atoms)
        changes = _ablate_atoms(trained, source, shown)
        values["atoms"] = _atoms_as_json(atoms, shown, changes)
        tables.append(_atoms_table(trained, atoms, shown, changes))
        galleries.append(_gallery(trained, looked_at, atoms, shown))
        text += _atom_text(trained, len(looked_at), len(atoms.active))
    return SectionResult("Heads and atoms", text, values, tables, drawn, galleries)


def _ablated(trained: TrainedRun) -> tuple[Source, int]:
    """The images that ablations are measured on, and the first layer whose heads are taken out: of a large model not all."""
    config = trained.run.config.model
    count = affordable(trained, ABLATED, passes=config.depth * config.heads)
    passes = affordable(trained, config.depth * config.heads, passes=count, least=config.heads)
    return trained.examples(count), config.depth - passes // config.heads


def _head_text(trained: TrainedRun, count: int, first: int) -> str:
    part = f" Those of layers {first + 1} to {trained.run.config.model.depth} were." if first else ""
    return (
        "A head is taken out by setting its U_k (in a ViT its part of the output matrix) to zero."
        f"{part} The change is ‖Δ‖/‖logits‖ with the mean over classes taken out of both, “decisions” are the images whose "
        f"first class is another one then; the mean over {count:,} {trained.examples_are}."
    )


def _atom_text(trained: TrainedRun, count: int, atoms: int) -> str:
    labels = "" if trained.images is None else " Images of a folder have no classes."
    return (
        f" An atom's answer to an image is its largest code over the patches, in the last layer; {count:,} "
        f"{trained.examples_are} were looked at. Of {atoms} atoms those are shown that tell classes apart best: "
        "selectivity is (largest mean over a class − mean of the others)/(their sum). An atom is taken out by "
        f"setting its code to zero for all tokens.{labels}"
    )


def _ablate_heads(trained: TrainedRun, source: Source, first: int) -> dict[str, np.ndarray]:
    """Name of a measure → `[layers, heads]`."""
    config = trained.run.config.model
    places = [(layer, head) for layer in range(first, config.depth) for head in range(config.heads)]
    changes = _changes(trained, source, places, interventions.logits_without_head)
    return {name: value.reshape(-1, config.heads) for name, value in changes.items()}


def _ablate_atoms(trained: TrainedRun, source: Source, shown: np.ndarray) -> dict[str, np.ndarray]:
    places = [(trained.run.config.model.depth - 1, int(atom)) for atom in shown]
    return _changes(trained, source, places, interventions.logits_without_atom)


def _changes(
    trained: TrainedRun, source: Source, places: list[tuple[int, int]], without: Any
) -> dict[str, np.ndarray]:
    """Mean over examples of each measure of `logit_change`, for each place."""
    run = trained.run
    inputs = run.task.inputs

    def change(params, batch, layer, number):
        images = inputs(batch)
        logits = run.model.apply(params, images)[0]
        moved = interventions.logit_change(logits, without(run.model, layer, number)(params, images))
        return {name: jnp.sum(value) for name, value in moved.items()}

    jitted = jax.jit(change, out_shardings=replicated(run.mesh))
    parts = list(batches(source))
    sums = [
        jax.tree.map(
            lambda *x: sum(map(float, x)), *(jitted(trained.params, batch, *place) for batch in parts)
        )
        for place in places
    ]
    return {name: np.array([each[name] for each in sums]) / len(source) for name in sums[0]}


def _find(trained: TrainedRun, source: Source) -> Atoms:
    run = trained.run
    inputs, read = run.task.inputs, peak_reader(run.config.model.pool == "class")

    def look(params, batch):
        found = run.model.apply(params, inputs(batch), trace=read)[1]
        return {name: value[-1] for name, value in found.items()}

    look = jax.jit(look, out_shardings=replicated(run.mesh))

    def parts():
        for batch in batches(source):
            found = jax.device_get(look(trained.params, batch))
            yield found["peak"], found["place"], np.maximum(batch["label"], 0)

    classes = max(run.config.model.num_classes, 1)
    return top_examples(parts(), num_classes=classes, top=TOP)


def _most_selective(atoms: Atoms) -> np.ndarray:
    """Among the atoms that answer to at least TOP images, those of the largest selectivity; of all where there are none."""
    score = np.where((atoms.peaks > 0).all(axis=1), atoms.selectivity, -1)
    return np.argsort(-score, kind="stable")[: min(SHOWN, len(score))]


def _class_of(trained: TrainedRun, label: int) -> str:
    classes = trained.run.classes or trained.run.info.class_names
    return classes[label] if trained.images is None and label < len(classes) else "–"


def _heads_table(heads: dict[str, np.ndarray], first: int) -> Table:
    rows = [
        [
            f"{first + layer + 1}.{head + 1}",
            f"{heads['change'][layer, head]:.3f}",
            f"{100 * heads['flipped'][layer, head]:.1f}",
            f"{heads['divergence'][layer, head]:.4f}",
        ]
        for layer, head in np.ndindex(heads["change"].shape)
    ]
    columns = ["layer.head", "change of the logits", "decisions (%)", "divergence (nats)"]
    return Table("without one head", columns, rows)


def _atoms_table(trained: TrainedRun, atoms: Atoms, shown: np.ndarray, changes: dict) -> Table:
    rows = [
        [
            int(atom) + 1, _class_of(trained, int(atoms.class_means[atom].argmax())), f"{atoms.selectivity[atom]:.2f}",
            f"{100 * atoms.active[atom]:.0f}", f"{changes['change'][number]:.3f}", f"{100 * changes['flipped'][number]:.1f}",
        ]
        for number, atom in enumerate(shown)
    ]  # fmt: skip
    columns = [
        "atom",
        "class",
        "selectivity",
        "images it answers to (%)",
        "change of the logits",
        "decisions (%)",
    ]
    return Table("atoms of the last layer, and the logits without one", columns, rows)


def _atoms_as_json(atoms: Atoms, shown: np.ndarray, changes: dict[str, np.ndarray]) -> dict[str, Any]:
    """Every atom's images and class, and the ablations of those that are shown."""
    return {
        "images": atoms.images.tolist(),
        "peaks": np.round(atoms.peaks, 4).tolist(),
        "class": atoms.class_means.argmax(axis=1).tolist(),
        "selectivity": np.round(atoms.selectivity, 4).tolist(),
        "active": np.round(atoms.active, 4).tolist(),
        "shown": shown.tolist(),
        **{name: value.tolist() for name, value in changes.items()},
    }


def _gallery(trained: TrainedRun, source: Source, atoms: Atoms, shown: np.ndarray) -> Gallery:
    rows, columns = trained.run.config.model.grid
    scale = 255 / trained.run.info.max_value
    draw = partial(_with_patch, grid=(rows, columns))
    figures_ = []
    for atom in shown:
        name = _class_of(trained, int(atoms.class_means[atom].argmax()))
        tiles = []
        for image, place, peak in zip(atoms.images[atom], atoms.places[atom], atoms.peaks[atom], strict=True):
            example = source[int(image)]
            label = _class_of(trained, int(example["label"])) if int(example["label"]) >= 0 else ""
            tiles.append((f"{label} ({peak:.2f})".strip(), draw(scale * example["image"], int(place))))
        alt = f"The {len(tiles)} images that atom {atom + 1} answers to most, the patch outlined; its class is {name}."
        figures_.append(Figure(f"atom-{atom + 1:04d}.png", sheet(tiles, columns=4, side=120), alt))
    return Gallery(
        "Images that an atom answers to most, with the code of the outlined patch",
        {
            "atom": [
                f"{atom + 1}: {_class_of(trained, int(atoms.class_means[atom].argmax()))}" for atom in shown
            ]
        },
        figures_,
    )


def _with_patch(image: np.ndarray, place: int, *, grid: tuple[int, int]) -> np.ndarray:
    """The image with the outline of one patch."""
    large = image.repeat(max(1, -(-120 // image.shape[0])), axis=0).repeat(
        max(1, -(-120 // image.shape[0])), axis=1
    )
    mask = np.zeros(grid, bool)
    mask.flat[place] = True
    return outlined(large, [mask], strength=0)
