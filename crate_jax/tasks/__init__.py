"""What a model is trained for. A task turns (model, batch, key) into a loss and metrics; the trainer knows no more."""

from operator import attrgetter

from crate_jax import InputError
from crate_jax.data.augmentation import Crops
from crate_jax.runs.config import Config
from crate_jax.settings import one_of
from crate_jax.tasks import reconstruct, simdino, tokens
from crate_jax.tasks.base import Apply, Batch, MakeTask, Metrics, Task, uses
from crate_jax.tasks.classify import classify
from crate_jax.tasks.tokenizer import ValueMeaning

# A new task is its file and one row here.
TASKS: dict[str, MakeTask] = {
    "classify": classify,
    "autoregressive": tokens.autoregressive,
    "bert": tokens.bert,
    "joint": tokens.joint,
    "masked_autoencoder": reconstruct.masked_autoencoder,
    "autoencoder": reconstruct.autoencoder,
    "simdino": simdino.simdino,
}


def crops_of(config: Config) -> Crops | None:
    """The crops that the task of a run wants beside each image; None for none."""
    return simdino.crops(config) if config.task == "simdino" else None


def make_task(config: Config, meaning: ValueMeaning) -> Task:
    """The task that `config.task` names.

    Args:
      config: the run.
      meaning: what the values in a batch stand for.
    Raises:
      InputError: an unknown task, one that the model cannot be trained for, or a setting that it does not use.
    """
    one_of("task", config.task, TASKS)
    users: dict[str, list[str]] = {}
    for task, make in TASKS.items():
        for setting in getattr(make, "settings", ()):
            users.setdefault(setting, []).append(task)
    for setting, tasks in users.items():
        found = attrgetter(setting)(config)
        if found and config.task not in tasks:
            raise InputError(
                f"{setting}: found {found:g}; accepted for task {config.task}: 0 (only {' and '.join(tasks)} "
                f"use{'s' * (len(tasks) == 1)} it)"
            )
    return TASKS[config.task](config, meaning)


__all__ = ["TASKS", "Apply", "Batch", "MakeTask", "Metrics", "Task", "crops_of", "make_task", "uses"]
