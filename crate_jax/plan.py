"""Say whether a training step fits a machine that is not here, and what it will cost, by compiling it ahead of time.

    python -m crate_jax.plan --config=configs/crate.py:base --topology=v5e:16x16
    python -m crate_jax.plan --config=configs/crate.py:large --topology=h100:8 --search

Nothing is run: the machine is not needed, only its compiler (pip install '.[tpu]' for TPUs).
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from crate_jax import InputError
from crate_jax.models.stack import REMAT_POLICIES
from crate_jax.parallel import sharding
from crate_jax.parallel.sharding import MeshConfig
from crate_jax.planning import topology as topologies
from crate_jax.planning.compile import Plan, in_subprocess
from crate_jax.runs import cli
from crate_jax.runs.config import Config, to_config_dict
from crate_jax.runs.console import console, human_bytes, table, wide_table
from crate_jax.runs.workdir import without_none
from crate_jax.settings import REQUIRED, setting

# Batches of a search are the configuration's times or by two, at most so often.
DOUBLINGS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(cli.ConfigFlags):
    """Those of a configuration, and the machine."""

    topology: str = setting(REQUIRED, f"The machine: {topologies.ACCEPTED}.")
    slices: int = setting(1, "TPU slices, joined by the data centre's network.", least=1)
    mesh: str | None = setting(None, "In place of the configuration's mesh.preset.", choices=sharding.PRESETS)
    program: Path | None = setting(
        None, "A file that the compiled program is written to, as XLA prints it; not with --search."
    )
    json: bool = setting(False, "Print one JSON object instead of a table.")
    search: bool = setting(False, "Try meshes, remat policies and batch sizes.")


def main(argv: list[str]) -> None:
    flags, config, _, overrides = cli.parse_config_file(argv, Flags)
    machine = topologies.parse(flags.topology, flags.slices)
    topologies.check_compiler(machine)
    if flags.program is not None and flags.search:
        raise InputError("--program: a search compiles many programs; give one of the two")
    if flags.mesh is not None:
        config = _with_mesh(config, flags.mesh)

    def compiled(config: Config) -> Plan:
        described = without_none(to_config_dict(config).to_dict())
        return in_subprocess(described, overrides, flags.topology, machine.slices, flags.program)

    plans = list(search(config, machine, compiled)) if flags.search else [compiled(config)]
    if not plans:
        raise InputError("--search: every candidate was refused, each for the reason above")
    best = max(plans, key=_worth)
    if flags.json:
        print(json.dumps(dataclasses.asdict(best)))
    elif flags.search:
        _show_search(plans, best)
    else:
        _show(best)


def search(config: Config, machine: topologies.Topology, compiled) -> Iterator[Plan]:
    """For every mesh and remat policy the largest batch that fits, doubled or halved from the configuration's.

    Memory falls from policy to policy, so the batch of one is where the next one begins. What cannot be compiled is said on
    stderr and left out.
    """
    meshes = [name for name in sharding.PRESETS if name != "hybrid" or machine.slices > 1]
    for mesh in meshes:
        batch = config.batch_size
        for remat in REMAT_POLICIES:
            candidate = _with_mesh(config, mesh)
            candidate = dataclasses.replace(
                candidate, model=dataclasses.replace(candidate.model, remat=remat)
            )
            best, halved = None, False
            for _ in range(DOUBLINGS):
                try:
                    tried = compiled(dataclasses.replace(candidate, batch_size=batch))
                except InputError as error:
                    print(f"{mesh}, {remat}, batch {batch}: {error}", file=sys.stderr)
                    break
                yield tried
                if tried.fits:
                    best = tried
                    if halved:
                        break
                    batch *= 2
                elif best is not None:
                    break
                else:
                    halved, batch = True, batch // 2
            if best is not None:
                batch = best.batch_size


def _worth(plan: Plan) -> tuple:
    """The largest batch that fits; of equals the least recomputed, then the least sent."""
    sent = sum(found["bytes"] for found in plan.collectives.values())
    return plan.fits, plan.batch_size, -list(REMAT_POLICIES).index(plan.remat), -sent


def _with_mesh(config: Config, preset: str) -> Config:
    """Sizes that belong to another preset do not stay."""
    return dataclasses.replace(config, mesh=MeshConfig(preset))


def _show(plan: Plan) -> None:
    mesh = " × ".join(f"{name}={size}" for name, size in plan.mesh.items())
    sizes = {"peak": plan.peak_bytes, "parameters": plan.params_bytes, "optimiser": plan.optimizer_bytes}
    sizes["activations and temporaries"] = plan.temp_bytes
    sent = {
        kind: f"{found['count']} × a step, {human_bytes(found['bytes'])} a device"
        for kind, found in plan.collectives.items()
    }
    table(
        f"{plan.num_params:,} parameters on {plan.topology}",
        {
            "fits": f"{'yes' if plan.fits else 'NO'}, {human_bytes(plan.hbm_bytes)} a device",
            **{name: human_bytes(size) if size is not None else "not known" for name, size in sizes.items()},
            "mesh": mesh,
            "batch": f"{plan.batch_size}, remat {plan.remat}",
            **sent,
            "flops a step": f"{plan.flops_per_step:.3e} in matrix products",
            "time of those": f"{1e3 * plan.matmul_seconds:.3g} ms at the {plan.rates} rate",
            "bytes moved": _moved(plan),
            "compiled in": f"{plan.compile_seconds:.1f} s",
        },
    )
    if plan.moved_by:
        rows = [
            [kind, times, human_bytes(size), f"{size / plan.moved_bytes:.0%}"]
            for kind, times, size in plan.moved_by
        ]
        wide_table("what moves the bytes", ["kind", "times per step", "bytes per step", "share"], rows)


def _moved(plan: Plan) -> str:
    if plan.moved_bytes is None:
        return "not known"
    return (
        f"{human_bytes(plan.moved_bytes)} per device and step, {1e3 * plan.memory_seconds:.3g} ms at the {plan.rates} "
        f"rate; no step is faster than {1e3 * max(plan.memory_seconds, plan.matmul_seconds):.3g} ms"
    )


def _show_search(plans: list[Plan], best: Plan) -> None:
    rows = [
        [
            "×".join(str(size) for size in plan.mesh.values()),
            plan.remat,
            plan.batch_size,
            human_bytes(plan.peak_bytes) if plan.peak_bytes is not None else "?",
            "yes" if plan.fits else "no",
            human_bytes(sum(found["bytes"] for found in plan.collectives.values())),
            "◀" if plan is best and plan.fits else "",
        ]
        for plan in plans
    ]
    wide_table(
        f"{best.num_params:,} parameters on {best.topology}",
        ["data×fsdp×tensor", "remat", "batch", "peak", "fits", "sent a step", ""],
        rows,
    )
    if not best.fits:
        console.print("nothing fits; take a larger machine or a smaller model")


if __name__ == "__main__":
    cli.run(main, Flags)
