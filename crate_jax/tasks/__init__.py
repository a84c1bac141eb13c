"""What a model is trained for. A task turns (model, batch, key) into a loss and metrics; the trainer knows no more."""

from operator import attrgetter

from crate_jax import InputError
from crate_jax.runs.config import Config
from crate_jax.tasks import reconstruct, simdino, tokens
from crate_jax.tasks.base import Apply, Batch, Task
from crate_jax.tasks.classify import classify
from crate_jax.tasks.tokenizer import Pixels

TASKS = {
    "classify": classify,
    "autoregressive": tokens.autoregressive,
    "bert": tokens.bert,
    "joint": tokens.joint,
    "masked_autoencoder": reconstruct.masked_autoencoder,
    "autoencoder": reconstruct.autoencoder,
    "simdino": simdino.simdino,
}


# Settings that only some tasks look at; the others must leave them at 0.
SETTINGS = {
    "data.mixup": ("classify",),
    "data.cutmix": ("classify",),
    "data.erase": ("classify",),
    "regularizer.sparse_rate_reduction": ("classify", "joint"),
    "regularizer.orthogonality": ("classify", "joint"),
}


def make_task(config: Config, pixels: Pixels) -> Task:
    """The task that `config.task` names.

    Args:
      config: the run.
      pixels: what the values of the images mean.
    Raises:
      InputError: an unknown task, one that the model cannot be trained for, or a setting that it does not look at.
    """
    if config.task not in TASKS:
        raise InputError(f"task: found {config.task!r}; accepted: {', '.join(TASKS)}")
    for name, tasks in SETTINGS.items():
        found = attrgetter(name)(config)
        if found and config.task not in tasks:
            raise InputError(
                f"{name}: found {found:g}; accepted for task {config.task}: 0 (it acts in {' and '.join(tasks)} alone)"
            )
    return TASKS[config.task](config, pixels)


__all__ = ["TASKS", "Apply", "Batch", "Task", "make_task"]
