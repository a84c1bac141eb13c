"""How fast the codec should decode on a GPU that is not here: its loop, compiled ahead of time, and the bytes that it moves.

    python -m benchmarks.codec_plan --model=runs/english --lanes=1024,8192 --output=codec-h100.json

A step of the loop gives each lane a symbol. It is no faster than the memory's traffic or its products at the rates of the
chip, and it launches so many kernels, for each of which LAUNCH seconds are added, a guess. Nothing is run.
"""

import argparse
import json
import os
import re
from collections import Counter
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.codec import record
from crate_jax import models
from crate_jax.compress import open_predictor
from crate_jax.compression import lanes, rans
from crate_jax.compression.predictors import Float
from crate_jax.planning import hlo, topology, traffic
from crate_jax.training.opening import open_run

MACHINE = "h100:1"
# Between two kernels of a loop, with its part of reading the condition on the host.
LAUNCH = 5e-6
# float32 products on the cores that are not for matrices, as published: no less than these are reached.
FLOAT32_FLOPS = 67e12


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a run or a portable model; left out: the one that is shipped")
    parser.add_argument("--lanes", default="1024,8192", help="numbers of chunks side by side")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file; items in it are replaced")
    flags = parser.parse_args()
    machine = topology.parse(MACHINE)
    topology.check_compiler(machine)
    predictor = as_on_a_gpu(flags.model)
    for count in map(int, flags.lanes.split(",")):
        found = predict(predictor, count, machine)
        print(json.dumps(found, indent=1))
        record(flags.output, f"{predictor.numerics}, {count} lanes", found, 0, "benchmarks.codec_plan")


def as_on_a_gpu(model: str | None):
    """The predictor with what its run resolves to there: its numbers are bfloat16 unless it says otherwise."""
    predictor = open_predictor(model)
    if predictor.numerics != "float":
        return predictor
    opened = open_run(Path(model))
    return Float(models.create(opened.run.config.model, "gpu"), opened.params, predictor.context)


def predict(predictor, count: int, machine: topology.Topology) -> dict:
    """What a step of the loop over so many lanes moves, multiplies and launches, and the rate that follows."""
    placed = NamedSharding(Mesh(np.array(topology.devices(machine)), ("one",)), PartitionSpec())
    window, coded = predictor.num_positions, predictor.num_positions - predictor.context

    def shaped(*shape, dtype=np.int32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

    params = jax.tree.map(lambda leaf: shaped(*np.shape(leaf), dtype=leaf.dtype), predictor.params)
    reader = rans.Reader(shaped(count, dtype=np.uint32), shaped(count))
    data = shaped(count, rans.BYTES_PER_SYMBOL * window, dtype=np.uint8)
    arguments = params, shaped(count, window), shaped(), shaped(), shaped(count), reader, data
    compiled = lanes._compile(predictor, count).trace(*arguments).lower().compile(lanes.GPU_OPTIONS)
    runs, sizes = per_step(compiled.as_text(), window)
    moved, kernels = sum(sizes.values()), sum(runs.values())
    flops = 2 * count * sum(np.size(leaf) for leaf in jax.tree.leaves(predictor.params) if np.ndim(leaf) > 1)
    memory, products = moved / machine.chip.reachable_bandwidth, flops / FLOAT32_FLOPS
    step = max(memory, products) + kernels * LAUNCH
    return {
        "lanes": count,
        "window": window,
        "context": predictor.context,
        "gigabytes per step": moved / 1e9,
        "kernels per step": round(kernels),
        "gigaflops per step, at most": flops / 1e9,
        "milliseconds of memory": 1e3 * memory,
        "milliseconds of products": 1e3 * products,
        "milliseconds of launches, at 5 µs": 1e3 * kernels * LAUNCH,
        "predicted MB/s of decoding": coded / window * count / step / 1e6,
        "MB/s without launches": coded / window * count / max(memory, products) / 1e6,
        "predicted MB/s of encoding": coded / window * count / step / 2e6,
        "milliseconds per step": 1e3 * step,
    }


def per_step(text: str, window: int) -> tuple[Counter, Counter]:
    """How often instructions of each kind run in a step of the loop and the bytes that they move, each with a step's share
    of what surrounds the loop. The program does not say how many steps there are.
    """
    module = hlo.parse(text)
    (loop,) = (found for found in module.computations[module.entry] if found.opcode == "while")
    (body,) = re.findall(r"\bbody=%?([\w.\-]+)", loop.attributes)
    whole, once = (traffic._computation(name, module, False, traffic.kind) for name in (module.entry, body))
    return tuple(
        Counter({kind: inside[kind] + (every[kind] - inside[kind]) / window for kind in every})
        for every, inside in zip(whole, once, strict=True)
    )


if __name__ == "__main__":
    main()
