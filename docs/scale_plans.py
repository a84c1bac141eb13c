"""The tables of docs/scale.md: compiles each line's training step ahead of time and writes what the compiler says.

    python docs/scale_plans.py [NAME ...]      # all of them, or some; a few minutes each on one core
    python docs/scale_plans.py --render        # only the tables, from docs/plans.json

Needs the TPU and CUDA compilers: pip install 'jax[tpu]' and what `python -m crate_jax.plan` asks for.
"""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "plans.json", HERE / "scale.md"

CRATE_1B = "--config.model.dim=3072 --config.model.depth=40 --config.model.heads=48 --config.model.remat=dots"
WEAK = "--config=configs/crate.py:large --config.model.remat=full --config.mesh.preset=dp"
PLANS = {
    "CRATE-B, 16 chips": "--config=configs/crate.py:base --topology=v5e:4x4 --config.model.remat=full",
    "CRATE-B, 256 chips": "--config=configs/crate.py:base --topology=v5e:16x16",
    "CRATE-L, 16 chips": "--config=configs/crate.py:large --topology=v5e:4x4 --mesh=fsdp --config.model.remat=full",
    "CRATE-L, 256 chips": "--config=configs/crate.py:large --topology=v5e:16x16 --mesh=fsdp",
    "CRATE 1.1B, 256 chips": f"--config=configs/crate.py:large {CRATE_1B} --topology=v5e:16x16 --mesh=fsdp",
    "iGPT-L, 256 chips": "--config=configs/igpt.py:imagenet32_l --topology=v5e:16x16 --config.mesh.preset=fsdp_tp "
    "--config.mesh.tensor=2",
    "iGPT-L, 2 slices": "--config=configs/igpt.py:imagenet32_l --topology=v5e:16x16 --slices=2 "
    "--config.mesh.preset=hybrid --config.mesh.tensor=4",
    "iGPT-XL, 64 chips": "--config=configs/igpt.py:imagenet64_xl --topology=v5p:4x4x4",
    "iGPT-XL, 64 GPUs": "--config=configs/igpt.py:imagenet64_xl --topology=h100:64",
    # Weak scaling: 64 images a chip, parameters over up to 64 chips and the same in every 64 beyond.
    "CRATE-L, 4 chips": f"{WEAK} --topology=v5p:2x2x1 --config.mesh.fsdp=4 --config.batch_size=256",
    "CRATE-L, 64 chips": f"{WEAK} --topology=v5p:4x4x4 --config.mesh.fsdp=64 --config.batch_size=4096",
    "CRATE-L, 512 chips": f"{WEAK} --topology=v5p:8x8x8 --config.mesh.fsdp=64 --config.batch_size=32768",
    "CRATE-L, 4096 chips": f"{WEAK} --topology=v5p:16x16x16 --config.mesh.fsdp=64 --config.batch_size=262144",
}


def compile_plan(name: str) -> dict:
    command = [sys.executable, "-m", "crate_jax.plan", *PLANS[name].split(), "--json"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def gib(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**30:.2f}"


def milliseconds(time: float | None) -> str:
    return "?" if time is None else f"{1e3 * time:.1f} ms"


def render(plans: dict[str, dict]) -> str:
    columns = (
        "| what | machine | data×fsdp×tensor | batch, remat | fits | peak | parameters | optimiser | temporaries "
        "| Tflop a step | matmuls | bytes moved | compiled in |"
    )
    lines = [columns, "|" + "---|" * (columns.count("|") - 1)]
    for name, plan in plans.items():
        lines.append(
            f"| {name} | {plan['topology']} | {'×'.join(map(str, plan['mesh'].values()))} "
            f"| {plan['batch_size']:,}, {plan['remat']} | {'yes' if plan['fits'] else 'no'} "
            f"| {gib(plan['peak_bytes'])} of {gib(plan['hbm_bytes'])} | {gib(plan['params_bytes'])} "
            f"| {gib(plan['optimizer_bytes'])} | {gib(plan['temp_bytes'])} | {plan['flops_per_step'] / 1e12:,.0f} "
            f"| {1e3 * plan['matmul_seconds']:.1f} ms | {milliseconds(plan['memory_seconds'])} "
            f"| {plan['compile_seconds']:.0f} s |"
        )
    lines += ["", "Collectives of a step, as often as they run × GiB of results a device:", ""]
    kinds = sorted({kind for plan in plans.values() for kind in plan["collectives"]})
    lines += [f"| what | {' | '.join(kinds)} |", "|" + "---|" * (len(kinds) + 1)]
    for name, plan in plans.items():
        found = [plan["collectives"].get(kind) for kind in kinds]
        cells = [f"{one['count']} × {one['bytes'] / 2**30:.3f}" if one else "" for one in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    for name in [] if arguments == ["--render"] else arguments or PLANS:
        compiled = compile_plan(name)
        plans = {**(json.loads(RESULTS.read_text()) if RESULTS.exists() else {}), name: compiled}
        plans = {name: plans[name] for name in PLANS if name in plans}
        RESULTS.write_text(json.dumps(plans, indent=1) + "\n")
        print(name, "fits" if plans[name]["fits"] else "does not fit", flush=True)
    plans = json.loads(RESULTS.read_text())
    start, end = "<!-- plans: begin (docs/scale_plans.py) -->\n", "<!-- plans: end -->"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(start)
    PAGE.write_text(
        before + start + "\n" + render(plans) + "\n\n" + end + rest.partition(end)[2], encoding="utf-8"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
