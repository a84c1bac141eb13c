"""What a run is: all that follows from its configuration and the description of its data, without the data themselves."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from crate_jax import InputError, models
from crate_jax.data.sources import DatasetInfo
from crate_jax.models.config import GPU_PLATFORMS
from crate_jax.parallel.sharding import check_batch_size, make_mesh
from crate_jax.runs import compile_cache
from crate_jax.runs.config import Config, Duration
from crate_jax.tasks import Task, make_task
from crate_jax.tasks.tokenizer import ValueMeaning
from crate_jax.training.run_data import Find, RunData


@dataclasses.dataclass(frozen=True)
class Run:
    """A run. Model, task and data follow from the fields: a copy with another configuration or mesh has its own.

    Attributes:
      config: fitted to the data.
      workdir: its folder.
      info: what the data hold that `config.data` names.
      mesh: of the devices that it runs on.
      palette: `[k, 3]`, the colours of a model of colour tokens.
      find: finds the data; None where there are none to look at (a plan).
      classes: class names whose places are the labels, where they are not those of the data themselves.
    """

    config: Config
    workdir: Path
    info: DatasetInfo
    mesh: Mesh
    palette: np.ndarray | None = None
    find: Find | None = None
    classes: tuple[str, ...] | None = None

    @functools.cached_property
    def model(self) -> models.Model:
        """The model that the configuration describes."""
        return models.create(self.config.model, self._platform, deterministic=self.config.deterministic)

    @property
    def compiler_options(self) -> dict[str, bool]:
        """What the steps of the run are compiled with. `deterministic` on a GPU: no kernel that adds up in an order of its
        own, and none chosen by how fast it was just now.
        """
        deterministic = self.config.deterministic and self._platform in GPU_PLATFORMS
        return {"xla_gpu_deterministic_ops": True} if deterministic else {}

    @property
    def _platform(self) -> str:
        return self.mesh.devices.flat[0].platform

    @functools.cached_property
    def meaning(self) -> ValueMeaning:
        """What the values of the data stand for."""
        return ValueMeaning.of(self.info, self.palette)

    @functools.cached_property
    def task(self) -> Task:
        """What the model is trained for."""
        return make_task(self.config, self.meaning)

    @functools.cached_property
    def data(self) -> RunData:
        """The examples, read on first use."""
        return RunData(self.config, self.info, self.mesh, self.find, self.classes)

    def steps(self, duration: Duration | None) -> int:
        """A duration of this run in steps; 0 for None, which means never."""
        if duration is None:
            return 0
        sizes = {"num_examples": self.info.num_examples["train"], "batch_size": self.config.batch_size}
        total = None if duration == self.config.total else self.config.total.in_steps(**sizes)
        return duration.in_steps(**sizes, total_steps=total)


def build(
    config: Config,
    info: DatasetInfo,
    workdir: Path,
    *,
    find: Find | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Run:
    """The run of a configuration that is fitted to its data, which are not looked at.

    Args:
      config: the configuration.
      info: what the data hold.
      workdir: the folder of the run; nothing is read or written there.
      find: finds the data when they are needed.
      devices: those of the mesh, perhaps only described; all that there are by default.
    Returns:
      the run, as yet without a palette; where `needs_palette` it has no task before it is given one.
    Raises:
      InputError: whatever is wrong with the mesh, the batch size, the model or the task.
    """
    mesh = make_mesh(config.mesh, devices)
    if devices is None:
        compile_cache.enable(mesh.devices.flat[0].platform)
    check_batch_size(config.batch_size, config.accumulate, mesh)
    run = Run(config, workdir, info, mesh, find=find)
    _ = run.model  # Made here for the mistakes that it finds.
    if needs_palette(run):
        return run
    if config.data.palette is not None:
        raise InputError(
            f"data.palette: found {config.data.palette} for {config.data.channels} channel(s) and model.family "
            f"{config.model.family!r}; accepted: none, but for colour images and a model of tokens"
        )
    _ = run.task
    return run


def needs_palette(run: Run) -> bool:
    """Whether its tokens are the colours of a palette."""
    return isinstance(run.config.model, models.TokenConfig) and run.config.data.channels == 3


def with_palette(run: Run, palette: np.ndarray) -> Run:
    """The run whose tokens are these colours.

    Raises:
      InputError: a palette of another size than the model's vocabulary, or whatever else is wrong with the task.
    """
    run = dataclasses.replace(run, palette=palette)
    _ = run.task
    return run
