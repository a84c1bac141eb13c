"""Probe every layer: linear classifier and nearest neighbours, beside an untrained network and raw pixels.

    python -m crate_jax.probe --workdir=runs/igpt
    python -m crate_jax.probe --workdir=runs/crate-b --config.data.name=npz:FILE

Writes report/probe.json and report/probe.png in the run's folder.
"""

import dataclasses
import json

import jax

from crate_jax import InputError, models
from crate_jax.analysis import features, figures, linear_probe
from crate_jax.analysis.linear_probe import Probe
from crate_jax.parallel import processes
from crate_jax.parallel.sharding import tree_shardings
from crate_jax.runs import cli
from crate_jax.runs.console import console, wide_table
from crate_jax.runs.metrics import write_if_possible
from crate_jax.settings import setting
from crate_jax.training.building import Run
from crate_jax.training.opening import open_model, open_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(cli.WorkdirFlags, processes.JobFlags):
    """Those of a run and of a job, and the untrained network."""

    random: bool = setting(False, "Probe the untrained network alone.")


def main(argv: list[str]) -> None:
    flags, config, path, overrides = cli.parse_workdir(argv, Flags)
    if flags.random:
        probe(open_model(config, path), {})
    else:
        run, params, step = open_run(
            path, flags.checkpoint, config=config, overrides=overrides, match_classes=False
        )
        probe(run, {f"step-{step}": params})


def probe(run: Run, networks: dict[str, models.Params]) -> dict[str, Probe]:
    """Probe networks, the untrained one and raw pixels; prints a table, writes `report/probe.json` and `.png`.

    Args:
      run: the model and the data; the data's classes need not be the model's.
      networks: name → parameters of the model.
    Returns:
      what each probe says: the networks' names, "untrained" and "pixels".
    Raises:
      InputError: the data are unreadable, or a class has too few examples.
    """
    if not run.info.num_classes:
        raise InputError(
            f"data.name: {run.info.name} is {run.info.kind}, which has no classes to probe; accepted: labelled images"
        )
    with jax.set_mesh(run.mesh):
        init = jax.jit(run.model.init, out_shardings=tree_shardings(run.model.abstract_params, run.mesh))
        # The parameters that the run started from.
        networks = {**networks, "untrained": init(jax.random.key(run.config.seed))}
        extractors = [features.network(run, params, name) for name, params in networks.items()]
        probed = {}
        for extractor in (*extractors, features.pixels(run)):
            train, test = (features.extract(extractor, split) for split in ("train", "test"))
            console.print(f"probing {extractor.name}: {train.num_layers} × {train.dim} features")
            probed[extractor.name] = linear_probe.probe(train, test, run.info.num_classes, run.mesh)
    _report(run, probed)
    return probed


def _report(run: Run, probed: dict[str, Probe]) -> None:
    report = run.workdir / "report"
    lists = {
        name: {field: values.tolist() for field, values in result._asdict().items()}
        for name, result in probed.items()
    }
    about = {"data": dataclasses.asdict(run.info), "strengths": linear_probe.STRENGTHS}
    title = f"{run.model.config.family} on {run.info.name}"
    networks = {name: result for name, result in probed.items() if name != "pixels"}
    picture = figures.probe(networks, probed["pixels"], title=f"{title}: probes by layer")
    columns = [column for name in networks for column in (f"{name} %", "C", "k-NN %")]
    rows = [
        [layer + 1, *(cell for result in networks.values() for cell in _cells(result, layer))]
        for layer in range(run.model.config.depth)
    ]
    pixels = _cells(probed["pixels"], 0)
    rows.append(["pixels", *pixels, *[""] * (len(columns) - len(pixels))])
    wide_table(
        f"{title}: accuracy on the {run.info.num_examples['test']:,} test images", ["layer", *columns], rows
    )
    for name, result in networks.items():
        layer = linear_probe.chosen_layer(result.validation)
        console.print(
            f"{name}: best layer {layer + 1} (chosen on a held-out fifth of the training images), "
            f"{100 * result.accuracy[layer]:.2f} % linear, {100 * result.knn[layer]:.2f} % k-NN",
            markup=False,
        )
    for name, result in probed.items():
        if (worst := result.gradient.max()) > linear_probe.TOLERANCE:
            console.print(
                f"{name}: L-BFGS stopped early in some layers (gradient {worst:.1e} of that at zero)"
            )
    text = json.dumps({**about, "probes": lists}, indent=1) + "\n"
    files = {report / "probe.json": text, report / "probe.png": picture}
    written = [str(file) for file, content in files.items() if write_if_possible(file, content)]
    if written:
        console.print(f"written: {', '.join(written)}")


def _cells(result: Probe, layer: int) -> list[str]:
    linear, strength, knn = result.accuracy[layer], result.strength[layer], result.knn[layer]
    return [f"{100 * linear:.2f}", f"{strength:g}", f"{100 * knn:.2f}"]


if __name__ == "__main__":
    cli.run(main, Flags)
