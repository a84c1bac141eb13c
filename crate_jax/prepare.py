"""Write a dataset as array_record, once, in parallel; started again with the same output it goes on where it stopped."""

import math
from pathlib import Path

from absl import flags

from crate_jax import InputError
from crate_jax.data import prepare
from crate_jax.runs import console

EXAMPLE = """  python -m crate_jax.prepare --input=folder:data/imagenet --output=data/imagenet-records
  python -m crate_jax.train --config=configs/crate.py:small --config.data.name=array_record:data/imagenet-records"""


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "input", None, "A dataset by name, such as folder:PATH or tar:PATH.", flag_values=values
    )
    flags.DEFINE_string("output", None, "The folder to write to.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Where TensorFlow datasets are kept.", flag_values=values)
    flags.DEFINE_enum(
        "unreadable", "skip", ["skip", "stop"], "What to do about unreadable images.", flag_values=values
    )
    flags.DEFINE_integer("processes", None, "How many; default: one a core.", flag_values=values)
    flags.DEFINE_float("shard_mib", 256, "Size of a shard, about.", flag_values=values)
    rest = values(argv)
    name, output = values["input"].value, values["output"].value
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    if name is None or output is None:
        raise InputError(f"--input and --output are required. To start:\n{EXAMPLE}")
    shard_mib, processes = values["shard_mib"].value, values["processes"].value
    if not 0 < shard_mib < math.inf:
        raise InputError(f"--shard_mib: found {shard_mib:g}; accepted: above 0")
    if processes is not None and processes < 1:
        raise InputError(f"--processes: found {processes}; accepted: 1 or more")
    output = Path(output).expanduser()
    done = prepare.prepare(
        name,
        output,
        data_dir=values["data_dir"].value,
        stop_at_unreadable=values["unreadable"].value == "stop",
        num_processes=processes,
        shard_bytes=math.ceil(shard_mib * 2**20),
        progress=console.progress,
    )
    _report(name, output, done)


def _report(name: str, output: Path, done: prepare.Prepared) -> None:
    rows = {"classes": f"{len(done.class_names):,}: {', '.join(done.class_names[:3])}, …"}
    for split, counts in done.splits.items():
        rows[split] = (
            f"{counts.written:,} of {counts.found:,} images in {counts.shards} shard(s), {len(counts.unreadable)} unreadable"
        )
    rows["to train on it"] = f"--config.data.name=array_record:{output}"
    console.table(f"{name} as array_record", rows)
    unreadable = [line for counts in done.splits.values() for line in counts.unreadable]
    for line in unreadable[:20]:
        console.console.print(f"left out: {line}")
    if len(unreadable) > 20:
        console.console.print(f"… and {len(unreadable) - 20} more in {output / prepare.REPORT}")
    for warning in done.warnings:
        console.console.print(f"warning: {warning}")


if __name__ == "__main__":
    # Not above: the processes that write shards import this file and need no JAX.
    from crate_jax.runs import cli

    cli.run(main, joins=False)
