"""Ours and a peer, measured in turn in processes of their own on this machine.

    python -m benchmarks.run --suite=train [--workloads=crate_tiny] [--peer=PATH] [--output=FILE.json]

Suites:
  train       training steps: loss, gradients, Lion. Peers: the released CRATE (PATH is a checkout of
              github.com/Ma-Lab-Berkeley/CRATE), timm's ViT, transformers' ImageGPT
  sample      drawing images from iGPT-S, beside transformers' `generate`
  compile     how long our steps take to compile, and what they move
  objectives  coding rates and their gradients; beside them the released formula in PyTorch, where it is installed
  input       the input pipeline; --photographs and --cifar name folders of images

Of train, sample and compile the result is a JSON file: medians and spreads, ratios, device, versions, and the share of a
matrix product's and of a copy's speed, both measured in the same run. What is not installed is an error in its row alone.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.session import Session
from benchmarks.workloads import VARIANTS, WORKLOADS

DEFAULTS = {"train": "crate_tiny", "sample": "igpt_small_sampling", "compile": "crate_tiny"}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=[*DEFAULTS, "objectives", "input"], required=True)
    parser.add_argument("--workloads", help=f"by comma: {', '.join(WORKLOADS)}")
    parser.add_argument("--forms", default="default", help=f"ours, by comma: {', '.join(VARIANTS)}")
    parser.add_argument("--peer", help="a checkout of the released CRATE")
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"))
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds after which nothing new begins")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--steps", type=int, default=3, help="training steps in one measurement")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal")
    flags, rest = parser.parse_known_args()
    if flags.suite in ("objectives", "input"):
        return _other(flags.suite, rest)
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    workloads = (flags.workloads or DEFAULTS[flags.suite]).split(",")
    unknown = set(workloads) - WORKLOADS.keys() or set(flags.forms.split(",")) - VARIANTS.keys()
    if unknown:
        parser.error(f"found {', '.join(unknown)}; accepted: {', '.join([*WORKLOADS, *VARIANTS])}")
    options = {"budget": flags.budget, "peer": flags.peer, "small": flags.tiny}
    session = Session(flags.output, repeats=flags.repeats, steps=flags.steps, **options)
    try:
        session.start()
        for workload in workloads:
            peers = () if flags.suite == "compile" else WORKLOADS[workload].peers
            forms = [*flags.forms.split(","), *peers]
            names = session.prepare([(workload, form) for form in forms])
            session.measure(workload, names, forms)
    finally:
        session.close()
    return None


def _other(suite: str, arguments: list[str]) -> None:
    sys.argv = [f"benchmarks/{suite}.py", *arguments]
    if suite == "objectives":
        from benchmarks import objectives

        objectives.main()
    else:
        from absl import app

        from benchmarks import input as pipeline

        app.run(pipeline.main)


if __name__ == "__main__":
    main()
