"""Lengths of training, in epochs, steps, examples, or percent of the whole run."""

import dataclasses
import math

from crate_jax import InputError

UNITS = ("epochs", "steps", "examples", "percent")


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training: `value` in `unit`, one of UNITS. Percent is of the total."""

    value: float
    unit: str

    def __post_init__(self):
        if not 0 <= self.value < math.inf:
            raise InputError(f"{self.unit}: found {self.value}; accepted: a number 0 or more")

    def in_steps(self, *, num_examples: int, batch_size: int, total_steps: int | None = None) -> int:
        """As a whole number of optimiser steps, at least 1 (0 for a zero duration).

        Raises:
          InputError: a percentage where `total_steps` is None.
        """
        if self.value == 0:
            return 0
        if self.unit == "percent" and total_steps is None:
            raise InputError(
                "total_percent: the total is what percentages are of; give total_epochs or total_steps"
            )
        steps = {
            "epochs": lambda: self.value * num_examples / batch_size,
            "steps": lambda: self.value,
            "examples": lambda: self.value / batch_size,
            "percent": lambda: self.value / 100 * total_steps,
        }[self.unit]()
        return max(1, round(steps))


def epochs(value: float) -> Duration:
    """`value` passes over the training data."""
    return Duration(value, "epochs")


def steps(value: int) -> Duration:
    """`value` optimiser steps."""
    return Duration(value, "steps")


def percent(value: float) -> Duration:
    """`value` % of the whole run."""
    return Duration(value, "percent")
