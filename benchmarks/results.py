"""Trains what a row of the documentation shows, and writes docs/results/NAME.json.

    python -m benchmarks.results NAME [--seeds=0,1,2] [--workdir=runs/results]
    python -m benchmarks.results --nightly

Every command is one that the page prints; a run that is done is not done again. `python docs/check_numbers.py` then says
where the pages differ. `--nightly` trains the five cheapest recorded runs again, in new folders, compares them with their
files, writes nothing, and ends with exit code 1 where one is further from what is printed than chance explains.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from crate_jax import models
from crate_jax.analysis.linear_probe import chosen_layer
from crate_jax.runs.workdir import read_config

ROOT = Path(__file__).parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Row(NamedTuple):
    """One training: the configuration and changes to it, and whether its layers are probed."""

    config: str
    changes: tuple[str, ...] = ()
    probed: bool = False


RESULTS: dict[str, dict[str, Row]] = {
    "digits": {"CRATE": Row("configs/base.py")},
    "digits-families": {
        "CRATE-α": Row("configs/crate_alpha.py"),
        "ViT": Row("configs/vit.py"),
        "ToST": Row("configs/tost.py"),
    },
    "igpt-digits": {"iGPT": Row("configs/igpt.py", probed=True)},
    "self-supervised-digits": {
        "CRATE-MAE": Row("configs/mae.py", probed=True),
        "autoencoder": Row("configs/mae.py:autoencoder", probed=True),
        "SimDINO": Row("configs/simdino.py", probed=True),
    },
}


def command(name: str, *flags: str) -> None:
    subprocess.run([sys.executable, "-m", f"crate_jax.{name}", *flags], cwd=ROOT, check=True)


def measure(row: Row, workdir: Path, seed: int) -> dict:
    """The last metrics of a run, what its probe says, and the seconds that both took, now or when they were run."""
    clock = workdir / "seconds.json"
    if not clock.is_file():
        start = time.monotonic()
        command(
            "train", f"--config={row.config}", f"--workdir={workdir}", f"--config.seed={seed}", *row.changes
        )
        if row.probed:
            command("probe", f"--workdir={workdir}")
        clock.write_text(json.dumps(round(time.monotonic() - start, 1)))
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    found = {key.removeprefix("eval/"): value for key, value in last.items() if key.startswith("eval/")}
    found["parameters"] = models.create(read_config(workdir).model).num_params
    found["seconds"] = json.loads(clock.read_text())
    lengths = workdir / "report" / "code_length.json"
    if lengths.is_file():
        found["code_length"] = json.loads(lengths.read_text())
    if row.probed:
        found["probe"] = {
            name.split("-")[0]: best(values)
            for name, values in json.loads((workdir / "report" / "probe.json").read_text())["probes"].items()
        }
    return found


def best(values: dict) -> dict:
    """Of one network's probe: the chosen layer and what it reads there, in per cent."""
    layer = chosen_layer(values["validation"])
    return {
        "layer": layer + 1,
        "linear %": round(100 * values["accuracy"][layer], 2),
        "k-NN %": round(100 * values["knn"][layer], 2),
    }


def summary(runs: list[dict]) -> dict:
    """Each seed's numbers, and the accuracies' mean and standard deviation in per cent."""
    out: dict = {"seeds": runs}
    if "accuracy" in runs[0]:
        accuracies = [100 * run["accuracy"] for run in runs]
        out["accuracies %"] = [round(accuracy, 2) for accuracy in accuracies]
        out["mean %"] = round(mean(accuracies), 2)
        if len(runs) > 1:
            out["deviation %"] = round(stdev(accuracies), 2)
    return out


def recorded() -> list[tuple[float, str, str, dict, int]]:
    """(seconds, name, title, values, seed) of every single training that a file of results holds, cheapest first."""
    found = []
    for name, rows in RESULTS.items():
        path = ROOT / "docs" / "results" / f"{name}.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for title in rows:
            runs = record.get("values", {}).get(title, {}).get("seeds", [])
            found += [
                (run["seconds"], name, title, run, seed)
                for run, seed in zip(runs, record.get("seed") or [], strict=False)
            ]
    return sorted(found, key=lambda each: each[:3])


def allowed(metric: str, before: dict) -> float:
    """How far a repeated metric may be: two standard errors of the difference of two accuracies of that many examples, or a
    twentieth of a loss. On another machine a training is rounded differently and ends elsewhere.
    """
    if metric == "loss":
        return 0.05 * before["loss"]
    p = before["accuracy"]
    return 2 * (2 * p * (1 - p) / before["count"]) ** 0.5


def nightly(count: int = 5) -> bool:
    """Whether the cheapest recorded trainings, done again, end where they did."""
    good = True
    for seconds, name, title, before, seed in recorded()[:count]:
        with tempfile.TemporaryDirectory() as folder:
            after = measure(RESULTS[name][title], Path(folder) / "run", seed)
        metric = "accuracy" if "accuracy" in before else "loss"
        far, most = abs(after[metric] - before[metric]), allowed(metric, before)
        good &= far <= most
        verdict = "good" if far <= most else "TOO FAR"
        print(
            f"{name}, {title}, seed {seed}: {metric} {before[metric]:.4f} then, {after[metric]:.4f} now, {far:.4f} apart, "
            f"{most:.4f} allowed: {verdict}; {seconds:.0f} s then, {after['seconds']:.0f} s now",
            flush=True,
        )
    return good


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=RESULTS, nargs="?")
    parser.add_argument(
        "--nightly", action="store_true", help="repeat the five cheapest recorded runs and compare"
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workdir", type=Path, default=Path("runs/results"))
    flags = parser.parse_args()
    if flags.nightly:
        sys.exit(not nightly())
    if flags.name is None:
        parser.error(f"name a result ({', '.join(RESULTS)}) or --nightly")
    seeds = [int(seed) for seed in flags.seeds.split(",")]
    values = {}
    for title, row in RESULTS[flags.name].items():
        workdirs = [flags.workdir / flags.name / f"{title}-{seed}" for seed in seeds]
        values[title] = summary(
            [measure(row, workdir.absolute(), seed) for workdir, seed in zip(workdirs, seeds, strict=True)]
        )
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    result = {
        "command": f"python -m benchmarks.results {flags.name} --seeds={flags.seeds}",
        "commit": git.stdout.strip() or None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seeds,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": f"{platform.machine()}, {platform.system()}, CPU",
        "seconds": sum(run["seconds"] for row in values.values() for run in row["seeds"]),
        "values": values,
    }
    path = ROOT / "docs" / "results" / f"{flags.name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
