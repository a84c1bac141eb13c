"""A run's folder made of a released checkpoint: from then on it is a run like any other."""

import contextlib
import dataclasses
import importlib.resources
import json
import math
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import crate_jax
from crate_jax import InputError, models
from crate_jax.data import palette
from crate_jax.data.sources import DatasetInfo
from crate_jax.parallel.sharding import replicated, tree_shardings
from crate_jax.runs import recipes
from crate_jax.runs import workdir as workdirs
from crate_jax.runs.config import Config, DataConfig
from crate_jax.runs.metrics import read_metrics
from crate_jax.training import run_data
from crate_jax.training.building import Run, build, needs_palette, with_palette
from crate_jax.training.checkpoint import Checkpoints
from crate_jax.training.opening import Opened
from crate_jax.training.state import TrainState
from crate_jax.weights import Released, files
from crate_jax.weights.convert import flat

# The release of ImageNet-1K that a model of a thousand classes was trained on.
IMAGENET = "tfds:imagenet2012"
# The palette that Hugging Face's files of ImageGPT have beside them.
CLUSTERS = "preprocessor_config.json"
# Pixel values that go in as they are, scaled to [-1, 1], as timm's own ViTs take them.
HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def default_config(released: Released, colours: np.ndarray | None) -> Config:
    """The configuration of a run with this model: its task, and images as the released code prepares them.

    Args:
      released: the checkpoint.
      colours: the palette of a model of colour tokens.
    Raises:
      InputError: a model of more tokens than there are grey levels, without a palette.
    """
    model = released.config
    if isinstance(model, models.TokenConfig):
        if colours is None and model.vocab_size > 256:
            raise InputError(
                f"--palette is required: the model's {model.vocab_size} tokens are colours, which the file does not hold; "
                f"accepted: the .npy of OpenAI's release (kmeans_centers.npy), or Hugging Face's {CLUSTERS}"
            )
        data = DataConfig(
            run_data.UNKNOWN, image_size=math.isqrt(model.num_positions), channels=1 if colours is None else 3
        )
        return Config(model=model, task="autoregressive" if model.causal else "bert", data=data)
    imagenet = model.num_classes == 1000
    data = recipes.imagenet_data(
        name=IMAGENET if imagenet else run_data.UNKNOWN,
        image_size=model.image_size,
        channels=model.channels,
        eval_resize=round(model.image_size * 256 / 224) if imagenet else None,
        **({"mean": (0.5,), "std": (0.5,)} if model.channels == 1 else {}),
    )
    if released.family == "simdino":
        return Config(model=model, task="simdino", data=data, ema_decay=0.996)
    task = "masked_autoencoder" if released.family == "crate_mae" else "classify"
    if released.family == "vit_timm" and model.channels == 3:
        data = dataclasses.replace(data, **HALVES)
    return Config(model=model, task=task, data=data)


def read_palette(path: Path) -> np.ndarray:
    """The colours of a model's tokens: an .npy, or the clusters in the preprocessor's configuration of Hugging Face's.

    Raises:
      InputError: no such file, or one of something else.
    """
    if path.suffix != ".json":
        return palette.load(path)
    try:
        return np.asarray(json.loads(path.read_text(encoding="utf-8"))["clusters"], np.float32).reshape(-1, 3)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"palette: {path} holds no clusters of colours ({error})") from None


def describe_data(config: Config, classes: Path | None, overrides: Collection[str]) -> DatasetInfo:
    """What the data of the run hold: those that `data.name` was set to, else what the model tells of them.

    Args:
      config: of the run.
      classes: a text file of class names, one a line, in the order of the labels.
      overrides: dotted keys that were set by hand.
    Raises:
      InputError: data or a file of other classes than the model's.
    """
    model, data = config.model, config.data
    number = model.num_classes if config.task == "classify" else 0
    if "data.name" in overrides:
        info = run_data.describe(config, run_data.finder(data, exclude=""))
        if number not in (0, info.num_classes):
            raise InputError(
                f"data.name: {info.name} has {info.num_classes} classes, the model {number}; accepted: the data that it was "
                "trained on, or none here: each command that looks at the run takes --config.data.name too"
            )
        return info
    levels = model.vocab_size if isinstance(model, models.TokenConfig) and data.channels == 1 else 256
    return DatasetInfo(
        name=data.name,
        image_size=data.image_size,
        channels=data.channels,
        num_classes=number,
        class_names=_class_names(number, classes),
        max_value=levels - 1,
        num_examples={"train": 0, "test": 0},
    )


def _class_names(number: int, file: Path | None) -> tuple[str, ...]:
    """From the file; of a thousand classes ImageNet's, in the order that everybody numbers them; else numbers."""
    if file is not None:
        if not file.is_file():
            raise InputError(f"--classes: no file {file}; accepted: a text file with one class name per line")
        names = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    elif number == 1000:
        place = importlib.resources.files("tensorflow_datasets") / "datasets/imagenet2012/labels.txt"
        names = tuple(place.read_text(encoding="utf-8").split())
    else:
        names = tuple(str(label) for label in range(number))
    if len(names) != number or len(set(names)) != number:
        raise InputError(
            f"--classes: found {len(set(names))} different names; accepted: {number}, as the model has"
        )
    return names


def make_workdir(
    released: Released,
    source: Path,
    workdir: Path,
    config: Config,
    info: DatasetInfo,
    colours: np.ndarray | None,
) -> Run:
    """Write the folder of a run: configuration, data, palette, one checkpoint of step 0, and where it all comes from.

    Args:
      released: the checkpoint; its values are read now, one array at a time, each device getting its part.
      source: its file.
      workdir: a new folder; it is there when everything in it is.
      config, info: of the run.
      colours: the palette of a model of colour tokens.
    Raises:
      InputError: a folder that is not empty, a model that does not run, or a checkpoint that does not fit it.
    """
    workdir = workdir.absolute()
    _check_new(workdir)
    run = build(config, info, workdir)
    if needs_palette(run):
        if colours is None:
            raise InputError("--palette is required: the tokens of this model are colours")
        run = with_palette(run, colours)
    with jax.set_mesh(run.mesh):
        params = released.params(lambda abstract: tree_shardings(abstract, run.mesh))
    with _whole(workdir) as temporary:
        workdirs.write(temporary, config, info, colours)
        _save(params, temporary, run)
        provenance = json.dumps(_provenance(released, source), indent=2) + "\n"
        (temporary / workdirs.PROVENANCE).write_text(provenance, encoding="utf-8")
    return run


def make_small(opened: Opened, workdir: Path, command: str) -> None:
    """Write the folder of a run anew with one checkpoint's parameters alone, without the optimiser's state.

    Args:
      opened: the run.
      workdir: a new folder.
      command: how the run was made.
    Raises:
      InputError: a folder that is not empty.
    """
    workdir, run = workdir.absolute(), opened.run
    _check_new(workdir)
    lines = [line for line in read_metrics(run.workdir / "metrics.jsonl") if line["step"] <= opened.step]
    about = {
        "command": command,
        "step": opened.step,
        "evaluation": next((line for line in reversed(lines) if "eval/loss" in line), None),
        "crate_jax": crate_jax.__version__,
        "jax": jax.__version__,
    }
    with _whole(workdir) as temporary:
        workdirs.write(temporary, workdirs.read_config(run.workdir), run.info, run.palette)
        (temporary / "report").rmdir()
        arrays = {name: np.ascontiguousarray(leaf) for name, leaf in flat(opened.params).items()}
        files.write(temporary / workdirs.PARAMS, arrays, {})
        workdirs.write_sums(temporary)
        (temporary / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
        )
        (temporary / workdirs.PROVENANCE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _whole(workdir: Path) -> Iterator[Path]:
    """A folder to write under another name until everything in it is there."""
    temporary = workdir.with_name(f".{workdir.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.rename(workdir)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _check_new(workdir: Path) -> None:
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise InputError(f"--output: {workdir} is there already; accepted: a new folder")


def _save(params: models.Params, workdir: Path, run: Run) -> None:
    zero = jax.device_put(
        {"step": jnp.zeros((), jnp.int32), "halted": jnp.zeros((), jnp.bool_)}, replicated(run.mesh)
    )
    ema = params if run.config.ema_decay > 0 else None
    state = TrainState(params=params, opt_state=(), ema=ema, sums={}, **zero)
    checkpoints = Checkpoints(workdir)
    try:
        checkpoints.start_saving()
        checkpoints.save(state, 0, None)
        checkpoints.wait()
    finally:
        checkpoints.close()


def _provenance(released: Released, source: Path) -> dict[str, Any]:
    return {
        "file": str(source.absolute()),
        "sha256": {path.name: files.fingerprint(path) for path in files.parts(source)},
        "family": released.family,
        "heads": released.heads,
        "types": released.types,
        "notes": released.notes,
        "crate_jax": crate_jax.__version__,
    }
