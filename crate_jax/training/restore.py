"""Opening a trained run: its configuration, its model and the parameters that evaluation uses."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from crate_jax import InputError, models
from crate_jax.data import sources
from crate_jax.runs import workdir as workdirs
from crate_jax.runs.config import Config
from crate_jax.training.checkpoint import Checkpoints
from crate_jax.training.run import Run, make_run
from crate_jax.training.state import TrainState, with_shardings


def open_data(config: Config, workdir: Path) -> Run:
    """The data of `config` in the shape that its model, which exists already, takes; the model stays as it is."""
    # Images of another size than the model's are no mistake here: it sees them with interpolated positions.
    names = {field.name for field in dataclasses.fields(config.model)} - {"image_size", "image_width"}
    fixed = {f"model.{name}" for name in names}
    run = make_run(config, workdir, fixed)
    return dataclasses.replace(run, model=models.create(config.model))


def open_run(
    config: Config, workdir: Path, overrides: Collection[str] = (), *, match_classes: bool = True
) -> tuple[Run, models.Params, int]:
    """A run to look at, with the parameters of its latest checkpoint (the averaged ones if it kept an average).

    Args:
      config: the run's own configuration, perhaps with `data.*` changed to look at it on other data. With another
        `data.image_size` or `data.image_width` a model of images sees more or fewer patches, its positions interpolated.
      workdir: the folder of the run.
      overrides: dotted keys that were changed.
      match_classes: give other data the labels that the model was trained on, by class name; else they keep their own.
    Returns:
      `(run, params, step)`.
    Raises:
      InputError: no checkpoint, a changed model, or (to be matched) data whose classes the model does not know.
    """
    trained = workdirs.read_config(workdir)
    changed = sorted(key for key in overrides if key.startswith("model."))
    if changed:
        raise InputError(f"--config.{changed[0]}: the model of a trained run cannot be changed")
    # Other data take the shape that the model was trained on, unless another size is asked for.
    data = dataclasses.replace(config.data, channels=trained.data.channels)
    model = dataclasses.replace(trained.model, dtype=config.model.dtype)
    if not {"data.image_size", "data.image_width"} & set(overrides):
        data = dataclasses.replace(
            data, image_size=trained.data.image_size, image_width=trained.data.image_width
        )
    elif isinstance(model, models.ImageConfig):
        model = dataclasses.replace(model, image_size=data.image_size, image_width=data.image_width)
    run = open_data(dataclasses.replace(config, data=data, model=model), workdir)
    known = workdirs.read_dataset(workdir).class_names
    if match_classes and run.info.class_names != known:
        run = dataclasses.replace(run, labels=_label_map(run.info, known))
    params, step = _restore(models.create(trained.model), trained, workdir, run.mesh)
    return run, _at_resolution(params, trained.model, model), step


def warm_start(current: TrainState, workdir: Path, run: Run) -> TrainState:
    """A fresh state with the parameters of another run's latest checkpoint; a classification head of its own stays new.

    Position embeddings of images are interpolated when the grids of patches differ.

    Args:
      current: the state as initialised.
      workdir: the folder of the other run.
      run: the run that starts.
    Raises:
      InputError: a checkpoint of another family, or one whose shapes are not those of this model.
    """
    trained = workdirs.read_config(workdir)
    if trained.model.family != run.model.config.family:
        raise InputError(
            f"init_from: {workdir} holds model.family {trained.model.family!r}; accepted: {run.model.config.family!r}"
        )
    restored, _ = _restore(models.create(trained.model), trained, workdir, run.mesh)
    restored = _at_resolution(restored, trained.model, run.model.config)
    theirs = {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(restored)
    }
    problems = []

    def take(path, ours):
        found = theirs.get(jax.tree_util.keystr(path))
        if path[0].key.endswith("head") and (found is None or found.shape != ours.shape):
            return ours
        if found is None or found.shape != ours.shape:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            problems.append(f"{name} is {'missing' if found is None else found.shape}, not {ours.shape}")
            return ours
        return found

    params = jax.tree_util.tree_map_with_path(take, current.params)
    if problems:
        raise InputError(f"init_from: {workdir} does not fit the model: {'; '.join(problems)}")
    ema = None if current.ema is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(current, params=params, ema=ema)


def _at_resolution(params: models.Params, old: Any, new: Any) -> models.Params:
    """The parameters for the grid of patches of `new`; those of other models as they are."""
    if isinstance(old, models.ImageConfig) and isinstance(new, models.ImageConfig):
        return models.at_resolution(params, old, new)
    return params


def _restore(model: models.Model, trained: Config, workdir: Path, mesh: Mesh) -> tuple[models.Params, int]:
    checkpoints = Checkpoints(workdir, create=False)
    step = checkpoints.latest_step
    if step is None:
        raise InputError(f"--workdir: {workdir} holds no complete checkpoint yet")
    target = with_shardings(model.abstract_params, mesh)
    params = checkpoints.restore_params(target, step, averaged=trained.ema_decay > 0)
    checkpoints.close()
    return params, step


def _label_map(info: sources.DatasetInfo, known: tuple[str, ...]) -> np.ndarray:
    """The trained label of each class of other data, matched by name, or by number where all names are numbers."""
    names = info.class_names
    if not set(names) <= set(known) and all(name.isdecimal() and int(name) < len(known) for name in names):
        return np.array(
            [int(name) for name in names], np.int32
        )  # ImageNet-V2 calls its folders 0, 1, …, 999.
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"{info.name}: classes {', '.join(unknown[:5])} are not among those the model was trained on "
            f"({', '.join(known[:10])}{', …' if len(known) > 10 else ''})"
        )
    return np.array([known.index(name) for name in names], np.int32)
