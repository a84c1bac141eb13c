"""A trained run, opened again by the commands that look at it."""

import dataclasses
from collections.abc import Collection
from pathlib import Path

from crate_jax import InputError, models
from crate_jax.training.checkpoint import Checkpoints, place_like
from crate_jax.training.config import Config
from crate_jax.training.run import Run, make_run
from crate_jax.training.sharding import tree_shardings


def open_data(config: Config, workdir: Path, overrides: Collection[str] = ()) -> Run:
    """The run of a model that exists already: the data are brought to the model's shape, never the other way round.

    As `make_run`, but `config.model` stays as it is. With `data.name` set to other data their images are converted to
    the size and channels of the config, and `run.info.num_classes` may differ from the model's.

    Raises:
      InputError: as `make_run`.
    """
    run = make_run(config, Path(workdir), overrides)
    config = dataclasses.replace(run.config, model=config.model)
    return dataclasses.replace(run, config=config, model=models.create(config.model))


def open_run(
    config: Config, workdir: Path, overrides: Collection[str] = ()
) -> tuple[Run, models.Params, int]:
    """A trained run and the parameters of its last checkpoint, placed on the mesh.

    Args:
      config: the run's own, with the changes of the command line, as `cli.parse_workdir` returns it.
      workdir: the folder of the run.
      overrides: dotted keys that the user set by hand (see `fit_to_data`).
    Returns:
      `(run, params, step)`; the parameters are those that evaluation uses.
    Raises:
      InputError: as `open_data`, no checkpoint, or one whose parameters are not those of the model.
    """
    run = open_data(config, workdir, overrides)
    checkpoints = Checkpoints(run.workdir, create=False)
    try:
        step = checkpoints.latest_step
        if step is None:
            raise InputError(f"--workdir: {workdir} holds no complete checkpoint yet")
        abstract = run.model.abstract_params
        target = place_like(abstract, tree_shardings(abstract, run.mesh))
        return run, checkpoints.restore_params(target, step), step
    finally:
        checkpoints.close()
