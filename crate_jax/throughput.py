"""Measure how fast a run can read its data and take its steps, each alone and both together, on this machine.

    python -m crate_jax.throughput --config=configs/base.py
    python -m crate_jax.throughput --config=configs/crate.py:base --config.data.name=folder:PATH --config.data.threads=8

Takes half a minute after the step is compiled; nothing is trained and nothing is written.
"""

import dataclasses

from crate_jax.runs import cli
from crate_jax.runs.console import table
from crate_jax.training import throughput
from crate_jax.training.starting import start_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(cli.ConfigFlags):
    """Those of a configuration."""


def main(argv: list[str]) -> None:
    _, config, path, overrides = cli.parse_config_file(argv, Flags)
    run = start_run(config, path, overrides)
    title = f"{run.model.config.family} on {run.info.name}, {run.config.batch_size} examples per batch"
    table(title, throughput.measure(run))


if __name__ == "__main__":
    cli.run(main, Flags)
