"""Opening a run that was trained: its workdir is enough, the data and the machine that it was trained on are not needed."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from crate_jax import InputError, models
from crate_jax.data import sources
from crate_jax.data.sources import DatasetInfo
from crate_jax.runs import workdir as workdirs
from crate_jax.runs.config import Config, DataConfig
from crate_jax.training import run_data
from crate_jax.training.building import Run, build, needs_palette, with_palette
from crate_jax.training.checkpoint import LATEST
from crate_jax.training.restoring import at_resolution, restore_params
from crate_jax.training.run_data import Find
from crate_jax.training.starting import choose_palette

# Settings that decide which examples there are. Where they are those of the workdir, `dataset.json` describes the data.
WHICH_EXAMPLES = ("name", "data_dir", "train_split", "test_split", "labels_per_class")


class Opened(NamedTuple):
    """A run, the parameters of one of its checkpoints, and that checkpoint's step."""

    run: Run
    params: models.Params
    step: int


def open_run(
    workdir: Path,
    checkpoint: str = LATEST,
    *,
    config: Config | None = None,
    overrides: Collection[str] = (),
    match_classes: bool = True,
) -> Opened:
    """A trained run to look at, with the parameters of one checkpoint (the averaged ones if it kept an average).

    Only the workdir is read (`config.json`, `dataset.json`, perhaps the palette, the checkpoint). The data are opened when
    `run.data` is first used, or at once where `config` names others than the run was trained on: only they can say what they
    hold.

    Args:
      workdir: the folder of the run.
      checkpoint: "latest", "best" (by its evaluation while training) or a step.
      config: the run's own configuration with `data.*` changed, to look at it on other data, or with settings of
        `workdirs.FREE`, which say how its model is computed; None: as it was trained. With another `data.image_size` or
        `data.image_width` a model of images sees more or fewer patches, its positions interpolated.
      overrides: dotted keys that were changed.
      match_classes: give data the labels that the model was trained on, by class name; else they keep their own.
    Raises:
      InputError: no run, no such checkpoint, a damaged file, a changed model, or data that the model cannot look at.
    """
    workdirs.say_damage(workdir)
    trained, info = workdirs.read_config(workdir), workdirs.read_dataset(workdir)
    config = trained if config is None else config
    model = _computed_as(workdirs.on_any_machine(trained.model), config.model, overrides)
    # Other data take the shape that the model was trained on, unless another size is asked for.
    data = dataclasses.replace(config.data, channels=trained.data.channels)
    if not {"data.image_size", "data.image_width"} & set(overrides):
        data = dataclasses.replace(
            data, image_size=trained.data.image_size, image_width=trained.data.image_width
        )
    find, classes = _finder(data, workdir), info.class_names or None
    if any(getattr(data, name) != getattr(trained.data, name) for name in WHICH_EXAMPLES):
        info = _other_data(config, data, info, find)
        classes = classes if match_classes else None
    run = _build(dataclasses.replace(config, data=data, model=model), info, workdir, find)
    run = dataclasses.replace(run, classes=classes)
    params, step = restore_params(trained, workdir, run.mesh, checkpoint)
    return Opened(run, at_resolution(params, trained.model, run.config.model), step)


def open_model(config: Config, workdir: Path) -> Run:
    """A run around a model that was not trained here, or not yet; the data of `config` are looked at.

    Args:
      config: the model stays as it is; the data take the shape that it sees.
      workdir: the folder for what is found out, perhaps not there yet.
    Raises:
      InputError: data that are missing or that the model cannot look at.
    """
    find = run_data.finder(config.data, exclude=str(workdir))
    return _build(config, run_data.describe(config, find), workdir, find)


def _build(config: Config, info: DatasetInfo, workdir: Path, find: Find) -> Run:
    """The run of a model that exists already: it keeps everything but the size of the images that it sees."""
    if info.tokens is None:
        model, data = _at_size(config.model, config.data, info)
        config = dataclasses.replace(config, model=model, data=data)
    run = build(config, info.cut(config.model.sequence_length), workdir, find=find)
    return with_palette(run, choose_palette(run)) if needs_palette(run) else run


def _computed_as(model: Any, asked: Any, overrides: Collection[str]) -> Any:
    """The trained model, computed in the way that was asked for.

    Raises:
      InputError: an override that would make it another model.
    """
    changed = sorted(key for key in overrides if key.startswith("model."))
    other = [key for key in changed if key not in workdirs.FREE]
    if other:
        raise InputError(f"--config.{other[0]}: the model of a trained run cannot be changed")
    names = [key.removeprefix("model.") for key in changed]
    return dataclasses.replace(model, **{name: getattr(asked, name) for name in names})


def _at_size(model, data: DataConfig, info: DatasetInfo) -> tuple:
    """The model for images of the size that `data` asks for, and `data` with the shape of what the model sees.

    Raises:
      InputError: images that the model has no positions or no tokens for.
    """
    channels = getattr(model, "channels", None) or data.channels or info.channels
    images = models.Images(
        size=info.image_size,
        requested_size=data.image_size,
        requested_width=data.image_width,
        channels=channels,
        num_classes=model.num_classes,
        levels=info.max_value + 1,
        user_set=frozenset({"patch_size", "num_positions", "vocab_size"}),
    )
    model, size = model.fit(images)
    return model, dataclasses.replace(data, image_size=size, channels=channels)


def _finder(data: DataConfig, workdir: Path) -> Find:
    """As `run_data.finder`; says of which run the data are missing."""
    find = run_data.finder(data, exclude=str(workdir))

    def found() -> sources.Dataset:
        if data.name == run_data.UNKNOWN:
            raise InputError(
                f"--workdir: {workdir} does not say which data it was trained on; say what to look at with "
                "--config.data.name=NAME"
            )
        try:
            return find()
        except InputError as error:
            raise InputError(
                f"--workdir: the data of {workdir}, {data.name}, are not here ({error}); if they are elsewhere, say where "
                "with --config.data.name=NAME"
            ) from None

    return found


def _other_data(config: Config, data: DataConfig, trained: DatasetInfo, find: Find) -> DatasetInfo:
    """What data other than those of the training hold."""
    info = run_data.describe(dataclasses.replace(config, data=data), find)
    if info.kind != trained.kind:
        raise InputError(
            f"data.name: found {data.name}, {info.kind}; accepted: {trained.kind}, which the model was trained on"
        )
    return info
