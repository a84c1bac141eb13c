"""The folder of a run: its configuration, its dataset's description, and whether it may be continued."""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import numpy as np

from crate_jax import InputError
from crate_jax.data import palette
from crate_jax.data.dataset import class_name
from crate_jax.data.sources import DatasetInfo
from crate_jax.models.config import ModelConfig
from crate_jax.parallel import processes
from crate_jax.runs import optimizers, sums
from crate_jax.runs.config import Config, from_config_dict, to_config_dict
from crate_jax.runs.console import console
from crate_jax.runs.metrics import read_metrics, write_atomically

# Text that says what a run is and what it was trained on.
DESCRIPTIONS = ("config.json", "dataset.json")
# The palette of a run on colour tokens, see `crate_jax.data.palette`.
PALETTE = "palette.npy"
# The parameters of a run that is kept without checkpoints, by their paths.
PARAMS = "params.safetensors"
# Where the parameters of a run that was not trained here come from.
PROVENANCE = "provenance.json"
# Of a model's fields those that may differ from start to start: how it is computed or how it began, not what it is.
FREE = ("model.scan", "model.remat", "model.attention_kernel", "model.mssa_std")
NO_CHECKPOINTS = (
    "--workdir: {} holds the metrics of a run but no checkpoints; to start afresh give another --workdir, or move "
    "metrics.jsonl away"
)
# Settings of older versions that no longer exist and never changed what a run computes.
DROPPED = ("data.benchmark",)


def check(workdir: Path, config: Config, info: DatasetInfo | None = None) -> list[str]:
    """Whether the folder, if it is there, holds the same model, task and classes, and no file is missing that the run had;
    nothing is written.

    Args:
      workdir: the folder of a run, or a name for a new one.
      config: the run that is to start in it.
      info: what its data hold; None: they are not compared.
    Returns:
      what has changed since the last start, in words.
    Raises:
      InputError: the folder holds another model or task, or a part of a run, a damaged file, or is no folder.
    """
    if os.path.lexists(workdir) and not workdir.is_dir():
        what = "a file" if workdir.exists() else "a link to what is not there"
        raise InputError(f"--workdir: {workdir} is {what}; accepted: a folder, or a name for a new one")
    if (workdir / PROVENANCE).is_file():
        raise InputError(
            f"--workdir: {workdir} holds parameters from elsewhere ({PROVENANCE}); to train from them give a new --workdir "
            f"and --config.init_from={workdir}"
        )
    if not (workdir / "config.json").exists():
        if has_checkpoints(workdir):
            raise InputError(
                f"--workdir: {workdir} holds checkpoints but no config.json; restore it, or give another --workdir"
            )
        return []
    if read_metrics(workdir / "metrics.jsonl") and not (workdir / "checkpoints").is_dir():
        raise InputError(NO_CHECKPOINTS.format(workdir))
    before, now = _flat(read_config(workdir)), _flat(config)
    different = {
        key: (before.get(key), now.get(key)) for key in before | now if before.get(key) != now.get(key)
    }
    fatal = [
        f"{key} is {old} there, {new} here"
        for key, (old, new) in different.items()
        if key == "task" or (key.startswith("model.") and key not in FREE)
    ]
    if fatal:
        raise InputError(
            f"--workdir: {workdir} holds another run ({'; '.join(fatal)}); give another --workdir to start afresh"
        )
    changes = [*damage(workdir), *(f"{key} was {old}, is {new}" for key, (old, new) in different.items())]
    if has_checkpoints(workdir) and not (workdir / "metrics.jsonl").exists():
        changes.append("metrics.jsonl is gone; it starts again where the run goes on")
    return changes if info is None else changes + _changed_data(workdir, config, info)


def damage(workdir: Path) -> list[str]:
    """What of the folder is not as it was written, in words: text that somebody may have edited.

    Nothing is known of the folders of older versions, which hold no checksums.

    Raises:
      InputError: a damaged palette or damaged parameters, which nobody edits; or a damaged list.
    """
    if not (workdir / sums.LIST).is_file():
        return []
    try:
        expected = sums.read(workdir / sums.LIST)
    except ValueError as error:
        raise InputError(f"--workdir: {workdir}: {error}; restore it, or remove it") from None
    other = [
        name
        for name in expected
        if (workdir / name).is_file() and sums.sum_of(workdir / name) != expected[name]
    ]
    for name in set(other) - set(DESCRIPTIONS):
        raise InputError(f"--workdir: {workdir / name} is damaged (other checksum); restore it")
    return [f"{name} is not as it was written: edited by hand, or damaged" for name in other]


def say_damage(workdir: Path) -> None:
    """Print what `damage` finds, before a run is opened."""
    for text in damage(workdir):
        console.print(f"--workdir: in {workdir} {text}")


def has_checkpoints(workdir: Path) -> bool:
    """Whether anything was saved there, readable or not."""
    return any(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*"))


def holds_parameters(workdir: Path) -> bool:
    """Whether a model was saved there, in checkpoints or without."""
    return has_checkpoints(workdir) or (workdir / PARAMS).is_file()


def _changed_data(workdir: Path, config: Config, now: DatasetInfo) -> list[str]:
    """What the data hold that they did not at the last start.

    Raises:
      InputError: other classes, so that a label means another one, for a model that learns them.
    """
    if not (workdir / "dataset.json").is_file():
        if has_checkpoints(workdir):
            raise InputError(
                f"--workdir: {workdir} holds checkpoints but no dataset.json, which says what its labels mean; restore it, "
                "or give another --workdir"
            )
        return []
    before, changes = read_dataset(workdir), []
    if tuple(map(class_name, before.class_names)) != now.class_names:
        pairs = itertools.zip_longest(before.class_names, now.class_names)
        label, (old, new) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        text = f"label {label} was {old or 'none'}, is {new or 'none'}"
        if config.task == "classify":
            raise InputError(
                f"data.name: the classes of {now.name} are not those that {workdir} was trained on ({text}); accepted: the "
                "same class names, or another --workdir"
            )
        changes.append(text)
    for split, count in now.num_examples.items():
        if (old := before.num_examples.get(split)) != count:
            changes.append(f"the {split} split had {old} examples, has {count}")
    if not changes and before.fingerprint and before.fingerprint != now.fingerprint:
        changes.append(
            f"the files of {now.name} are others, by their names or sizes; their number is the same"
        )
    return changes


def write(workdir: Path, config: Config, info: DatasetInfo, colours: np.ndarray | None = None) -> None:
    """Create the folder and write what the run was started with: `config.json`, `dataset.json`, perhaps the palette.

    Args:
      workdir: the folder of the run.
      config, info: the run and its data.
      colours: the palette of a model of colour tokens.
    Raises:
      InputError: of several hosts one does not see what the first has written.
    """
    # All processes have checked before the first one writes, and go on when it has written.
    processes.wait("workdir checked")
    if processes.is_first():
        (workdir / "report").mkdir(parents=True, exist_ok=True)
        values = to_config_dict(config).to_dict()
        (workdir / sums.LIST).unlink(missing_ok=True)  # A kill from here on leaves no list, not a wrong one.
        write_atomically(workdir / "config.json", json.dumps(without_none(values), indent=2) + "\n")
        write_atomically(workdir / "dataset.json", json.dumps(dataclasses.asdict(info), indent=2) + "\n")
        if colours is not None:
            palette.save(colours, workdir / PALETTE)
        write_sums(workdir)
    processes.wait("workdir written")
    if not (workdir / "config.json").is_file():
        raise InputError(
            f"--workdir: process 0 wrote to {workdir}, which this host does not see; accepted: a shared folder"
        )


def write_sums(workdir: Path) -> None:
    """Write the list of checksums of what says what a run is, see `damage`."""
    files = [path for name in (*DESCRIPTIONS, PALETTE, PARAMS) if (path := workdir / name).is_file()]
    write_atomically(workdir / sums.LIST, sums.lines(workdir, files))


def read_config(workdir: Path) -> Config:
    """The configuration that a run was started with, by this version or an older one."""
    values = _read(workdir, "config.json")
    for group, name in (key.split(".") for key in DROPPED):
        if isinstance(values, dict) and isinstance(values.get(group), dict):
            values[group].pop(name, None)
    if isinstance(values, dict) and isinstance(values.get("optimizer"), dict):
        values["optimizer"] = optimizers.without_foreign(values["optimizer"])
    return from_config_dict(values)


def on_any_machine(model: ModelConfig) -> ModelConfig:
    """The model of a trained run, free to choose its attention again: it may have been trained on another machine."""
    return dataclasses.replace(model, attention_kernel="auto")


def read_dataset(workdir: Path) -> DatasetInfo:
    """The description of the data that a run was trained on."""
    length = getattr(read_config(workdir).model, "num_positions", None)
    values = _read(workdir, "dataset.json")
    try:
        return DatasetInfo.from_json(values, length)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(
            f"--workdir: {Path(workdir) / 'dataset.json'} does not describe a dataset ({type(error).__name__}: {error}); "
            "restore it, or start again with the run's configuration"
        ) from None


def _read(workdir: Path, name: str) -> dict:
    path = Path(workdir) / name
    if not path.is_file():
        raise InputError(f"--workdir: {workdir} holds no {name}; accepted: the folder of a training run")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # No JSON, or no UTF-8.
        raise InputError(f"--workdir: {path} is not valid JSON ({error})") from None


def _flat(config: Config) -> dict:
    out = {}

    def visit(prefix, values):
        for key, value in values.items():
            if isinstance(value, dict):
                visit(f"{prefix}{key}.", value)
            elif value is not None:
                out[prefix + key] = value

    visit("", to_config_dict(config).to_dict())
    return out


def without_none(values: dict) -> dict:
    return {k: without_none(v) if isinstance(v, dict) else v for k, v in values.items() if v is not None}
