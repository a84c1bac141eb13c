"""Make the report of a trained run, from its folder alone: tables, figures and one HTML page.

    python -m crate_jax.report --workdir=runs/base
    python -m crate_jax.report --workdir=runs/base --input=photos
    python -m crate_jax.report --workdir=runs/crate --workdir=runs/vit --output=both.html
    python -m crate_jax.report --workdir=runs/base --config.data.name=folder:PATH

Every section is made again: report/index.html holds them all, report/report.json their numbers. With several runs each
has its report, and one more page shows them side by side. Where the data are not on this machine, sections that need them
are taken from the last report; if the same data lie elsewhere, --config.data.name says where. With --input the layers are
shown other images, of any size and without labels.
"""

import dataclasses
from pathlib import Path

from crate_jax import InputError
from crate_jax.data import folders
from crate_jax.parallel import processes
from crate_jax.reports import comparison
from crate_jax.reports.writing import chosen, write_report
from crate_jax.runs import cli
from crate_jax.runs.console import table
from crate_jax.runs.flags import once_each
from crate_jax.settings import setting
from crate_jax.training.opening import open_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(cli.WorkdirFlags, processes.JobFlags):
    """Those of a run and of a job, what to look at, and where to."""

    input: Path | None = setting(
        None, "A folder of images to look at, with those in its folders; left out: the run's own test images."
    )
    sections: str | None = setting(
        None, "Sections to make, separated by commas, the others kept as they are; left out: all that apply."
    )
    output: Path | None = setting(
        None,
        "Of several --workdir: the page that shows them all; left out: report/together.html in the first.",
    )


def main(argv: list[str]) -> int | None:
    parsed = [cli.parse_workdir(each, Flags) for each in once_each(argv, "workdir")]
    flags, workdirs = parsed[0][0], [path for _, _, path, _ in parsed]
    if len({path.resolve() for path in workdirs}) < len(workdirs):
        raise InputError("--workdir: found the same run twice; accepted: different ones")
    if flags.output is not None and len(workdirs) == 1:
        raise InputError(
            "--output: found one --workdir; accepted with two or more (one has its page in report/)"
        )
    if flags.input is not None:
        folders.unlabelled(flags.input)  # Said before any model is opened.
    sections, failed = chosen(flags.sections), False
    for each, config, path, overrides in parsed:
        opened = open_run(path, each.checkpoint, config=config, overrides=overrides)
        outcome = write_report(opened, sections, images=each.input)
        table(f"{path} at step {opened.step}", outcome.written)
        failed |= bool(outcome.failed)
    if len(workdirs) > 1 and processes.is_first():
        output = flags.output or workdirs[0] / "report" / comparison.PAGE
        comparison.write(workdirs, output)
        table("side by side", {"page": output})
    return cli.FAILED if failed else None


if __name__ == "__main__":
    cli.run(main, Flags)
