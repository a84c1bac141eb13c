"""Write a dataset as array_record, once, in parallel; started again with the same output it goes on where it stopped.

    python -m crate_jax.prepare --input=folder:data/imagenet --output=data/imagenet-records
    python -m crate_jax.prepare --input=tar:data/imagenet --output=data/imagenet-records --processes=16
    python -m crate_jax.prepare --input=folder:data/cifar10 --output=data/cifar10.npz

To train on it: --config.data.name=array_record:data/imagenet-records. An output that ends in .npz gets the images decoded,
all of one size, to be kept in memory: --config.data.name=npz:data/cifar10.npz
"""

import dataclasses
import math
from pathlib import Path

from crate_jax import InputError
from crate_jax.data import decoded, prepare
from crate_jax.runs import console
from crate_jax.settings import REQUIRED, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What to write, and how."""

    input: str = setting(REQUIRED, "A dataset by name, such as folder:PATH or tar:PATH.")
    output: Path = setting(REQUIRED, "The folder to write to, or a file that ends in .npz.")
    data_dir: Path | None = setting(None, "Where TensorFlow datasets are kept.")
    unreadable: str = setting("skip", "What to do about unreadable images.", choices=("skip", "stop"))
    processes: int | None = setting(None, "Number of processes; left out: one per core.", least=1)
    shard_mib: float = setting(256.0, "Approximate size of a shard, in MiB.", above=0)


def main(argv: list[str]) -> None:
    # Not above: the processes that write shards import this file and need no JAX.
    from crate_jax.runs import cli

    flags = cli.parse(argv, Flags)
    output = flags.output.expanduser()
    common = {
        "data_dir": None if flags.data_dir is None else str(flags.data_dir),
        "stop_at_unreadable": flags.unreadable == "stop",
        "progress": console.progress,
    }
    if output.suffix == ".npz":
        for name in ("processes", "shard_mib"):
            if getattr(flags, name) != getattr(Flags, name):
                raise InputError(f"--{name}: has no effect on {output.name}; accepted: --output of a folder")
        _report_arrays(flags.input, output, decoded.write(flags.input, output, **common))
        return
    done = prepare.prepare(
        flags.input,
        output,
        num_processes=flags.processes,
        shard_bytes=math.ceil(flags.shard_mib * 2**20),
        **common,
    )
    _report(flags.input, output, done)


def _report(name: str, output: Path, done: prepare.Prepared) -> None:
    rows = {"classes": f"{len(done.class_names):,}: {', '.join(done.class_names[:3])}, …"}
    for split, counts in done.splits.items():
        rows[split] = (
            f"{counts.written:,} of {counts.found:,} images in {counts.shards} shard(s), {len(counts.unreadable)} unreadable"
        )
    rows["to train on it"] = f"--config.data.name=array_record:{output}"
    console.table(f"{name} as array_record", rows)
    unreadable = [line for counts in done.splits.values() for line in counts.unreadable]
    _name_left_out(unreadable, f" in {output / prepare.REPORT}")
    for warning in done.warnings:
        console.console.print(f"warning: {warning}")


def _report_arrays(name: str, output: Path, done: dict[str, tuple[int, list[str]]]) -> None:
    rows = {
        split: f"{written:,} images, {len(unreadable)} unreadable"
        for split, (written, unreadable) in done.items()
    }
    rows["to train on it"] = f"--config.data.name=npz:{output}"
    console.table(f"{name} as arrays", rows)
    _name_left_out([line for _, unreadable in done.values() for line in unreadable], "")


def _name_left_out(unreadable: list[str], where: str) -> None:
    for line in unreadable[:20]:
        console.console.print(f"left out: {line}")
    if len(unreadable) > 20:
        console.console.print(f"… and {len(unreadable) - 20} more{where}")


if __name__ == "__main__":
    from crate_jax.runs import cli

    cli.run(main, Flags)
