"""Make the report of a trained run, from its folder alone: tables, figures and one HTML page.

    python -m crate_jax.report --workdir=runs/base
    python -m crate_jax.report --workdir=runs/base --config.data.name=folder:PATH

Every section is made again: report/index.html holds them all, report/report.json their numbers. Where the data are not on
this machine, sections that need them are taken from the last report; if the same data lie elsewhere, --config.data.name says
where.
"""

import dataclasses

from crate_jax.parallel import processes
from crate_jax.reports.writing import write_report
from crate_jax.runs import cli
from crate_jax.runs.console import table
from crate_jax.training.opening import open_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(cli.WorkdirFlags, processes.JobFlags):
    """Those of a run and of a job."""


def main(argv: list[str]) -> int | None:
    flags, config, path, overrides = cli.parse_workdir(argv, Flags)
    opened = open_run(path, flags.checkpoint, config=config, overrides=overrides)
    outcome = write_report(opened)
    table(f"{path} at step {opened.step}", outcome.written)
    return cli.FAILED if outcome.failed else None


if __name__ == "__main__":
    cli.run(main, Flags)
