"""Parameters from checkpoints: of the run itself, or of another one that a run starts from."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from crate_jax import InputError, models
from crate_jax.runs import workdir as workdirs
from crate_jax.runs.config import Config
from crate_jax.training.building import Run
from crate_jax.training.checkpoint import LATEST, Checkpoints
from crate_jax.training.state import TrainState, with_shardings

# A run that trains deletes a checkpoint under its reader so often at most.
ATTEMPTS = 5


def restore_params(
    trained: Config, workdir: Path, mesh: Mesh, checkpoint: str = LATEST
) -> tuple[models.Params, int]:
    """The parameters that a run is evaluated with (the averaged ones if it kept an average), and their step.

    Args:
      trained: the configuration in the workdir.
      workdir: the folder of the run.
      mesh: where the parameters go.
      checkpoint: see `Checkpoints.find`.
    Raises:
      InputError: no such checkpoint.
    """
    model = models.create(workdirs.on_any_machine(trained.model))
    target = with_shardings(model.abstract_params, mesh)
    for attempt in range(ATTEMPTS):
        # A run that goes on meanwhile deletes old checkpoints: then there is a newer one.
        checkpoints = Checkpoints(workdir, create=False)
        step = checkpoints.find(checkpoint)
        try:
            return checkpoints.restore_params(target, step, averaged=trained.ema_decay > 0), step
        except FileNotFoundError:
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError


def at_resolution(params: models.Params, old: Any, new: Any) -> models.Params:
    """The parameters for the grid of patches of `new`; those of models of other things than images as they are."""
    if isinstance(old, models.ImageConfig) and isinstance(new, models.ImageConfig):
        return models.at_resolution(params, old, new)
    return params


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
    trained, model = workdirs.read_config(workdir), run.config.model
    if trained.model.family != model.family:
        raise InputError(
            f"init_from: {workdir} holds model.family {trained.model.family!r}; accepted: {model.family!r}"
        )
    restored, _ = restore_params(trained, workdir, run.mesh)
    restored = at_resolution(restored, trained.model, model)
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
