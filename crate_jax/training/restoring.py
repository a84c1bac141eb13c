"""Parameters from checkpoints: of the run itself, or of another one that a run starts from."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from crate_jax import InputError, models
from crate_jax.runs import workdir as workdirs
from crate_jax.runs.config import Config
from crate_jax.runs.console import console
from crate_jax.training.building import Run
from crate_jax.training.checkpoint import BEST, LATEST, Checkpoints
from crate_jax.training.state import TrainState, with_shardings
from crate_jax.weights import files
from crate_jax.weights.convert import flat

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
    if (workdir / workdirs.PARAMS).is_file():
        return _restore_file(target, workdir, checkpoint)
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


def _restore_file(target: Any, workdir: Path, checkpoint: str) -> tuple[models.Params, int]:
    """As `restore_params`, of a run that is kept without checkpoints."""
    step = json.loads((workdir / workdirs.PROVENANCE).read_text(encoding="utf-8"))["step"]
    if checkpoint not in (LATEST, BEST, str(step)):
        raise InputError(f"--checkpoint: found {checkpoint}; accepted in {workdir}: {LATEST}, {BEST}, {step}")
    stored = files.open_file(workdir / workdirs.PARAMS)
    expected = {name: leaf.shape for name, leaf in flat(target).items()}
    if expected != {name: array.shape for name, array in stored.items()}:
        raise InputError(
            f"--workdir: {workdir / workdirs.PARAMS} does not hold the parameters of the model in config.json"
        )
    arrays = {name: jax.device_put(stored[name].read(), leaf.sharding) for name, leaf in flat(target).items()}
    return jax.tree.unflatten(jax.tree.structure(target), arrays.values()), step


def at_resolution(params: models.Params, old: Any, new: Any) -> models.Params:
    """The parameters for the grid of patches of `new`; those of models of other things than images as they are."""
    if isinstance(old, models.ImageConfig) and isinstance(new, models.ImageConfig):
        return models.at_resolution(params, old, new)
    return params


def _say_grid(workdir: Path, old: Any, new: Any) -> None:
    if isinstance(old, models.ImageConfig) and isinstance(new, models.ImageConfig) and old.grid != new.grid:
        before, after = ("×".join(map(str, one.grid)) for one in (old, new))
        console.print(
            f"init_from: {workdir}: positions interpolated from {before} patches to {after}", markup=False
        )


def warm_start(current: TrainState, workdir: Path, run: Run) -> TrainState:
    """A fresh state with the parameters of another run's latest checkpoint; a head for other classes stays new.

    Position embeddings of images are interpolated when the grids of patches differ. Both are said.

    Args:
      current: the state as initialised.
      workdir: the folder of the other run.
      run: the run that starts.
    Raises:
      InputError: a checkpoint of another family, or one whose shapes are not those of this model.
    """
    workdirs.say_damage(workdir)
    trained, model = workdirs.read_config(workdir), run.config.model
    if trained.model.family != model.family:
        raise InputError(
            f"init_from: {workdir} holds model.family {trained.model.family!r}; accepted: {model.family!r}"
        )
    restored, _ = restore_params(trained, workdir, run.mesh)
    restored = at_resolution(restored, trained.model, model)
    _say_grid(workdir, trained.model, model)
    theirs = {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(restored)
    }
    problems, new_heads = [], set()

    def take(path, ours):
        found = theirs.get(jax.tree_util.keystr(path))
        if path[0].key.endswith("head") and (found is None or found.shape != ours.shape):
            new_heads.add(path[0].key)
            return ours
        if found is None or found.shape != ours.shape:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            problems.append(f"{name} is {'missing' if found is None else found.shape}, not {ours.shape}")
            return ours
        return found

    params = jax.tree_util.tree_map_with_path(take, current.params)
    if problems:
        raise InputError(f"init_from: {workdir} does not fit the model: {'; '.join(problems)}")
    before, now = trained.model.num_classes, model.num_classes
    for head in sorted(name for name in {**restored, **params} if name.endswith("head")):
        what = "starts anew" if head in new_heads else "is taken over" if head in params else "is left out"
        console.print(
            f"init_from: {workdir}: {head} {what} ({before} classes there, {now} here)", markup=False
        )
    ema = None if current.ema is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(current, params=params, ema=ema)
