"""The tables of docs/performance.md under "Passes" and "One layer": what a layer must move, counted operation by operation,
and what steps compiled for an H100 move.

    python docs/passes.py [NAME ...]      # all steps and sampling, or some; about a minute each on one core
    python docs/passes.py --render        # only the tables, from docs/results/passes-h100.json

Needs the CUDA compiler, which `python -m crate_jax.plan` names. counted_passes.py says what a pass is and counts them.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from counted_passes import GROUPS, count, passes  # noqa: E402

from crate_jax import models  # noqa: E402
from crate_jax.models import decoding, sampling  # noqa: E402
from crate_jax.parallel.chips import CHIPS  # noqa: E402
from crate_jax.planning import hlo, topology, traffic  # noqa: E402

RESULTS, PAGE = HERE / "results" / "passes-h100.json", HERE / "performance.md"
CHIP = CHIPS["h100"]
# What shows in a Python function's name that an instruction of CRATE's belongs to a part.
PARTS = {
    "norms": r"LayerNorm|layer_norm",
    "attention": r"attend",
    "projection": r"_coordinates",
    "output": r"_join|_add_bias",
    "matrix of ISTA": r"descent_matrix",
    "second half": r"ISTA",
}


class Step(NamedTuple):
    """A training step: `--config`, its batch, and the shape of the residual stream and of the stack."""

    family: str
    config: str
    batch: int
    tokens: int
    dim: int
    depth: int

    @property
    def pass_bytes(self) -> int:
        return 2 * self.batch * self.tokens * self.dim


STEPS = {
    "CRATE-B, batch 256": Step("CRATE", "configs/crate.py:base", 256, 197, 768, 12),
    "CRATE-L, batch 128": Step("CRATE", "configs/crate.py:large", 128, 197, 1024, 24),
    "CRATE-S, batch 256": Step("CRATE", "configs/crate.py:small", 256, 197, 576, 12),
    "ViT-S, batch 256": Step("ViT", "configs/vit.py:small", 256, 197, 384, 12),
    "iGPT-S, 32 × 1,024": Step("iGPT", "configs/igpt.py:imagenet32_s", 32, 1024, 512, 24),
}


def compiled(step: Step, *changes: str) -> tuple[dict, str]:
    """What `plan` says, and the program."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program.txt"
        command = [
            *(sys.executable, "-m", "crate_jax.plan", "--topology=h100:1", "--json", f"--program={program}"),
            *(f"--config={step.config}", f"--config.batch_size={step.batch}", *changes),
        ]
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{step.config}: {done.stderr.strip()}")
        return json.loads(done.stdout), program.read_text()


def by_part(program: str) -> Counter:
    """Bytes that the whole layers of a CRATE move, by (part, direction); of the last one, which takes the class token alone,
    and of what is no layer, by `last layer` and `outside`.
    """
    functions = hlo.functions(program)

    def label(instruction: hlo.Instruction) -> str:
        frame = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        names = functions[int(frame[1]) if frame else 0]
        if not any("Block.__call__" in name for name in names):
            return "outside"
        if "Stack._run.<locals>.body" not in names:
            return "last layer"
        part = next(
            (part for part, key in PARTS.items() if any(re.search(key, name) for name in names)), "other"
        )
        return f"{part}, {'backward' if 'transpose(' in instruction.attributes else 'forward'}"

    return Counter({name: size for name, _, size in traffic.moved(program, by=label).kinds})


def measure(step: Step) -> dict:
    """All that the tables show of a step."""
    plan, program = compiled(step)
    counted = passes(step.family) * step.depth * step.pass_bytes
    found = {
        "batch": step.batch,
        "passes forward": passes(step.family, False),
        "passes backward": passes(step.family, True),
        "GiB of a pass": step.pass_bytes / 2**30,
        "GiB counted": counted / 2**30,
        "GiB moved": plan["moved_bytes"] / 2**30,
        "ratio": plan["moved_bytes"] / counted,
        "GiB of temporaries": plan["temp_bytes"] / 2**30,
        "ms of bytes": 1e3 * plan["memory_seconds"],
        "ms of matrix products": 1e3 * plan["matmul_seconds"],
        "Tflop of matrix products": plan["flops_per_step"] / 1e12,
        "seconds to compile": plan["compile_seconds"],
    }
    if step.family == "CRATE":
        found["GiB by part"] = {name: size / 2**30 for name, size in by_part(program).items()}
    return found


def measure_deterministic(step: Step) -> dict:
    """The same step with deterministic=True."""
    plan, _ = compiled(step, "--config.deterministic=True")
    return {
        "GiB moved": plan["moved_bytes"] / 2**30,
        "GiB of temporaries": plan["temp_bytes"] / 2**30,
        "ms of bytes": 1e3 * plan["memory_seconds"],
    }


def measure_sampling(batch: int = 64, row: int = 32) -> dict:
    """Drawing images of iGPT-S, a row of pixels a call. Of the program's loops, one for each length of the cache, the
    shortest and the longest are compiled by themselves; what the others move lies on the line between.
    """
    model = models.create(models.igpt("s", dtype="bfloat16"), "gpu")
    positions, rooms = model.config.num_positions, decoding.rooms(model, row)
    sharding = jax.sharding.SingleDeviceSharding(topology.devices(topology.parse("h100:1"))[0])
    cache = jax.eval_shape(lambda: model.init_cache(batch))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    scalar, tokens = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    prompt = jax.ShapeDtypeStruct((batch, positions), jnp.int32)
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        (model.abstract_params, tokens, cache, scalar, prompt, scalar, keys),
    )
    moved = {}
    for room in (rooms[0], rooms[-1]):
        program = (
            sampling.make_program(model, row, sampling.SamplingParams(), (room,)).lower(*arguments).compile()
        )
        moved[room] = traffic.moved(program.as_text())
    # A product split along its sum writes its parts in float32, [parts, batch, features], and reads them again.
    last = hlo.parse(program.as_text())
    parts = sum(
        2 * hlo.shape_bytes(one.shape)
        for body in last.computations.values()
        for one in body
        if re.match(rf"f32\[\d+,{batch},\d+\]", one.shape)
        and one.name.startswith("gemm_fusion_dot")
        and one.opcode == "fusion"
    )
    total = sum(one.bytes for one in moved.values()) / 2 * positions / row
    matrices = sum(2 * leaf.size for leaf in jax.tree.leaves(model.abstract_params) if leaf.ndim > 2)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    least = positions * matrices + whole * (positions + 1) / 2
    return {
        "batch": batch,
        "GiB by row and length": {room: one.bytes / 2**30 for room, one in moved.items()},
        "GiB": total / 2**30,
        "seconds": total / CHIP.reachable_bandwidth,
        "seconds of partial sums": parts * positions / CHIP.reachable_bandwidth,
        "GiB of matrices and cache once a token": least / 2**30,
        "seconds of these": least / CHIP.reachable_bandwidth,
        "ratio": total / least,
        "ratio without partial sums": (total - parts * positions) / least,
        "kernels per token": round(sum(times for _, times, _ in moved[rooms[-1]].kinds) / row),
    }


def product_ms(step: Step) -> dict[str, float]:
    """Of one layer of a CRATE, milliseconds of matrix products forward, by part; backward takes twice as long."""
    tokens = step.batch * step.tokens
    dense, scores = 2 * tokens * step.dim**2, 2 * 2 * tokens * step.tokens * step.dim
    flops = {"projection": dense, "attention": scores, "output": dense, "second half": dense}
    return {part: 1e3 * count / CHIP.reachable_flops for part, count in flops.items()}


def table(columns: list[str], rows: list[list[object]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines] + [""]


def render(results: dict[str, dict]) -> str:
    lines = table(
        ["passes of one layer, read + written", "", *("CRATE", "ViT", "iGPT")],
        [
            [group, direction, *(_shown(family, backward, group) for family in ("CRATE", "ViT", "iGPT"))]
            for group in GROUPS
            for direction, backward in (("forward", False), ("backward", True))
        ]
        + [
            [
                "**sum**",
                direction,
                *(f"**{passes(family, backward)}**" for family in ("CRATE", "ViT", "iGPT")),
            ]
            for direction, backward in (("forward", False), ("backward", True))
        ],
    )
    lines += table(
        [
            "step",
            "passes × layers",
            "GiB counted",
            "GiB moved",
            "ratio",
            "bytes at 2.86 TB/s",
            "matrix products at 729 TFLOP/s",
        ],
        [
            [
                name,
                f"{passes(STEPS[name].family)} × {STEPS[name].depth}",
                *(f"{found[key]:.1f}" for key in ("GiB counted", "GiB moved")),
                f"{found['ratio']:.2f}",
                *(f"{found[key]:.1f} ms" for key in ("ms of bytes", "ms of matrix products")),
            ]
            for name, found in results.items()
        ],
    )
    return "\n".join(lines)


def _shown(family: str, backward: bool, group: str) -> str:
    chosen = [one for one in count(family) if one.backward == backward and one.group == group]
    return " + ".join(str(one.read + one.written) for one in chosen)


def layer(step: Step, found: dict) -> str:
    """One layer of a CRATE in milliseconds: as counted, as compiled, and its matrix products."""
    whole = step.depth - 1
    products, rows = product_ms(step), []

    def ms(size: float) -> float:
        return 1e3 * size / CHIP.reachable_bandwidth

    moved = {name: 2**30 * size / whole for name, size in found["GiB by part"].items()}
    for part in [*GROUPS, "matrix of ISTA", "other"]:
        for direction, backward in (("forward", False), ("backward", True)):
            size = moved.get(f"{part}, {direction}", 0)
            counted = passes("CRATE", backward, part)
            product = products.get(part, 0) * (1 + backward)
            if size or counted:
                rows.append(
                    [
                        part,
                        direction,
                        counted,
                        f"{size / step.pass_bytes:.1f}",
                        ms(counted * step.pass_bytes),
                        ms(size),
                        product,
                    ]
                )
    total = [sum(row[i] for row in rows) for i in (4, 5, 6)]
    rows.append(["**layer**", "", passes("CRATE"), f"{sum(float(row[3]) for row in rows):.1f}", *total])
    shown = [[*row[:4], *(f"{value:.3f}" for value in row[4:])] for row in rows]
    columns = [
        "part",
        "",
        "passes counted",
        "passes moved",
        "ms counted",
        "ms moved",
        "ms of matrix products",
    ]
    return "\n".join(table(columns, shown))


def main(arguments: list[str]) -> None:
    began = time.monotonic()
    empty = {
        "steps": {},
        "deterministic": {},
        "sampling": {},
        "speeds": {"TB/s": 2.86, "TFLOP/s": 729},
        "aim": 1.9,
    }
    values = json.loads(RESULTS.read_text())["values"] if RESULTS.exists() else empty
    jobs = {name: ("steps", lambda step=step: measure(step)) for name, step in STEPS.items()}
    for name in ("CRATE-B, batch 256", "iGPT-S, 32 × 1,024"):
        jobs[f"{name}, deterministic"] = (
            "deterministic",
            lambda step=STEPS[name]: measure_deterministic(step),
        )
    jobs["iGPT-S, 64 images"] = ("sampling", measure_sampling)
    for name in [] if arguments == ["--render"] else arguments or jobs:
        group, job = jobs[name]
        values[group][name] = job()
        values[group] = {name: values[group][name] for name in jobs if name in values[group]}
        print(name, json.dumps(values[group][name], ensure_ascii=False), flush=True)
        write(values, time.monotonic() - began)
    base = "CRATE-B, batch 256"
    for title, text in (
        ("passes", render(values["steps"])),
        ("layer", layer(STEPS[base], values["steps"][base])),
    ):
        start, end = f"<!-- {title}: begin (docs/passes.py) -->\n", f"<!-- {title}: end -->"
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(start)
        PAGE.write_text(before + start + "\n" + text + "\n" + end + rest.partition(end)[2], encoding="utf-8")


def write(values: dict, seconds: float) -> None:
    git = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(git, cwd=HERE.parent, capture_output=True, text=True, check=False)
    result = {
        "command": "python docs/passes.py",
        "commit": done.stdout.strip() or None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": None,
        "versions": {name: version(name) for name in ("jax", "jaxlib", "jax-cuda13-plugin")}
        | {"python": platform.python_version()},
        "machine": "compiled ahead of time for an H100, on a machine without a GPU",
        "seconds": round(seconds),
        "values": values,
    }
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
