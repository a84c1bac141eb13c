"""Starting a run: look at the data, fit the configuration to them, and choose the palette."""

import dataclasses
from collections.abc import Collection
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from crate_jax import InputError, settings
from crate_jax.data import palette
from crate_jax.parallel import processes
from crate_jax.runs import builtin
from crate_jax.runs import workdir as workdirs
from crate_jax.runs.config import Config, fit_to_data
from crate_jax.runs.metrics import check_wandb
from crate_jax.training import memory, run_data
from crate_jax.training.building import Run, build, needs_palette, with_palette


def start_run(config: Config, workdir: Path, overrides: Collection[str] = ()) -> Run:
    """The run of a configuration, fitted to its data. Nothing is written.

    Args:
      config: the configuration.
      workdir: the folder of the run, perhaps not there yet.
      overrides: dotted keys that the user set by hand (see `fit_to_data`).
    Raises:
      InputError: whatever is wrong with the data, the mesh, the batch size or the model, before any work is done; on all
        processes where they see different data.
    """
    settings.check(config, "config: ")
    check_wandb(config.wandb)
    find = run_data.finder(config.data, exclude=str(workdir))
    info = run_data.describe(config, find)
    processes.agree({"data": dataclasses.asdict(info)})
    config = fit_to_data(config, info, overrides)
    run = build(config, info.cut(config.model.sequence_length), workdir, find=find)
    memory.check(run)
    return with_palette(run, choose_palette(run)) if needs_palette(run) else run


def choose_palette(run: Run) -> np.ndarray:
    """The run's own palette if it has one, else that of the run it starts from, a given file's, or a new one.

    Raises:
      InputError: the run's own palette is gone.
    """
    config = run.config
    if workdirs.holds_parameters(run.workdir) and not (run.workdir / workdirs.PALETTE).is_file():
        raise InputError(
            f"--workdir: {run.workdir} holds parameters of a model of colours but no {workdirs.PALETTE}, which says what "
            "they are; restore it, or give another --workdir"
        )
    files = [run.workdir / workdirs.PALETTE]
    if config.init_from is not None:
        files.append(builtin.locate(config.init_from) / workdirs.PALETTE)
    file = next((file for file in files if file.is_file()), config.data.palette)
    if file is not None:
        return palette.load(file)
    colours = palette.fit(run.data.source("train"), config.model.vocab_size, seed=config.seed)
    return multihost_utils.broadcast_one_to_all(colours) if jax.process_count() > 1 else colours
