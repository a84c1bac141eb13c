"""Studies: several runs that say something together, declared by a configuration file as `STUDIES`."""

import dataclasses
from collections.abc import Callable, Mapping

from crate_jax.runs.config import Config


@dataclasses.dataclass(frozen=True)
class Study:
    """Runs, and what reads them once they are done.

    Attributes:
      runs: name → function that returns the configuration.
      analysis: the module that reads them, such as "crate_jax.analysis.scaling". It holds `COMMANDS`, the commands that each
        run goes through, "train" first; `HEADERS` of its table; `read(workdir, names)`, which returns rows with `cells()`;
        and `write(rows, workdir)`, which writes numbers and a picture and returns the picture's path.
    """

    runs: Mapping[str, Callable[[], Config]]
    analysis: str


def variants(studies: Mapping[str, Study]) -> dict[str, Callable[[], Config]]:
    """The runs of all studies as variants of their file, `STUDY/RUN`."""
    return {f"{study}/{name}": make for study, each in studies.items() for name, make in each.runs.items()}
