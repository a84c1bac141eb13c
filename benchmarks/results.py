"""Trains what a row of the documentation shows, and writes docs/results/NAME.json.

    python -m benchmarks.results NAME [--seeds=0,1,2] [--workdir=runs/results]
    python -m benchmarks.results cifar10-families --images=npz:data/cifar10.npz
    python -m benchmarks.results --nightly

Every command is one that the page prints; a run that is done is not done again. `python docs/check_numbers.py` then says
where the pages differ. `--jobs` trains several at a time, a seed of every row before the next seed; `--limit` stops those
that are not done after so many seconds, and a seed that not every row has finished is left out. `--nightly` trains the five
cheapest recorded runs again, in new folders, compares them with their files, writes nothing, and ends with exit code 1 where
one is further from what is printed than chance explains; those that need images from elsewhere are left to NAME.
"""

import argparse
import contextlib
import itertools
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from crate_jax import models
from crate_jax.analysis.linear_probe import chosen_layer
from crate_jax.runs.metrics import read_metrics
from crate_jax.runs.workdir import read_config, read_dataset

ROOT = Path(__file__).parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Row(NamedTuple):
    """One training.

    Attributes:
      config: the configuration.
      changes: further flags of `crate_jax.train`.
      probed: whether its layers are probed.
      images: whether it is trained on CIFAR-10; `--images` says where that is, tfds:cifar10 where it is left out.
    """

    config: str
    changes: tuple[str, ...] = ()
    probed: bool = False
    images: bool = False


# Reading images of 32 pixels is mostly work under Python's lock, which more threads only fight for.
CIFAR = {"changes": ("--config.data.threads=1", "--sections=loss"), "images": True}
FAMILIES = {"CRATE": "crate", "CRATE-α": "crate_alpha", "ToST": "tost", "ViT": "vit"}

RESULTS: dict[str, dict[str, Row]] = {
    "digits": {"CRATE": Row("configs/base.py")},
    "digits-families": {
        "CRATE-α": Row("configs/crate_alpha.py"),
        "ViT": Row("configs/vit.py"),
        "ToST": Row("configs/tost.py"),
    },
    "igpt-digits": {"iGPT": Row("configs/igpt.py", probed=True)},
    "igpt-ar-bert": {
        "AR": Row("configs/igpt.py:scaling/64x6-6", ("--sections=loss",), probed=True),
        "BERT": Row("configs/igpt.py:bert", ("--config.total_epochs=6", "--sections=loss"), probed=True),
    },
    "self-supervised-digits": {
        "CRATE-MAE": Row("configs/mae.py", probed=True),
        "autoencoder": Row("configs/mae.py:autoencoder", probed=True),
        "SimDINO": Row("configs/simdino.py", probed=True),
    },
    "cifar10-families": {
        title: Row(f"configs/{file}.py:cifar10_tiny", **CIFAR) for title, file in FAMILIES.items()
    },
    "cifar10-families-medium": {
        title: Row(f"configs/{file}.py:cifar10_medium", **CIFAR) for title, file in FAMILIES.items()
    },
    "igpt-cifar10": {
        "AR": Row("configs/igpt.py:cifar10_small", probed=True, **CIFAR),
        "BERT": Row("configs/igpt.py:cifar10_small_bert", probed=True, **CIFAR),
    },
}


class Run(NamedTuple):
    """A row with a seed, where it is trained, from which images, until when, and whether its output goes to a file."""

    row: Row
    workdir: Path
    seed: int
    images: str | None = None
    until: float = math.inf
    quiet: bool = False

    def command(self, name: str, *flags: str) -> None:
        """Run a command of this package on the run's folder.

        Raises:
          subprocess.TimeoutExpired: it was not done in time; it was killed.
          subprocess.CalledProcessError: it failed.
        """
        called = [sys.executable, "-m", f"crate_jax.{name}", f"--workdir={self.workdir}", *flags]
        left = None if self.until == math.inf else self.until - time.monotonic()
        if left is not None and left <= 0:
            raise subprocess.TimeoutExpired(called, 0)
        self.workdir.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            log = None
            if self.quiet:
                log = stack.enter_context(open(f"{self.workdir}.log", "a", encoding="utf-8"))
            subprocess.run(called, cwd=ROOT, check=True, timeout=left, stdout=log, stderr=log)


def measure(run: Run) -> dict:
    """The last metrics of a run, what its probe says, and the seconds that both took, now or when they were run."""
    row, workdir = run.row, run.workdir
    clock = workdir / "seconds.json"
    if not clock.is_file():
        start = time.monotonic()
        images = [f"--config.data.name={run.images}"] if row.images and run.images else []
        run.command("train", f"--config={row.config}", f"--config.seed={run.seed}", *row.changes, *images)
        if row.probed:
            run.command("probe")
        clock.write_text(json.dumps(round(time.monotonic() - start, 1)))
    lines, config = read_metrics(workdir / "metrics.jsonl"), read_config(workdir)
    found = {key.removeprefix("eval/"): value for key, value in lines[-1].items() if key.startswith("eval/")}
    found["parameters"] = models.create(config.model).num_params
    found["seconds"] = json.loads(clock.read_text())
    if row.images:
        per_epoch = read_dataset(workdir).num_examples["train"] / config.batch_size
        metric = "accuracy" if "accuracy" in found else "loss"
        found[f"{metric} after epochs"] = {
            f"{line['step'] / per_epoch:.2f}": round(line[f"eval/{metric}"], 5)
            for line in lines
            if "eval/loss" in line
        }
        found["training loss"] = late_loss(lines)
    lengths = workdir / "report" / "code_length.json"
    if lengths.is_file():
        found["code_length"] = json.loads(lengths.read_text())
    if row.probed:
        probes = json.loads((workdir / "report" / "probe.json").read_text())["probes"]
        found["probe"] = {name.split("-")[0]: best(values) for name, values in probes.items()}
    return found


def late_loss(lines: list[dict]) -> float:
    """The mean training loss over the last twentieth of the steps; a line holds the mean since the line before."""
    lines = [line for line in lines if "train/loss" in line]
    late = [
        (line["step"] - before["step"], line["train/loss"])
        for before, line in itertools.pairwise(lines)
        if before["step"] >= 0.95 * lines[-1]["step"]
    ]
    return round(sum(steps * loss for steps, loss in late) / sum(steps for steps, _ in late), 5)


def best(values: dict) -> dict:
    """Of one network's probe: the layer chosen without the test images, what it reads there, and what every layer does, in
    per cent.
    """
    layer = chosen_layer(values["validation"])
    percent = {name: [round(100 * value, 2) for value in values[name]] for name in ("accuracy", "knn")}
    return {
        "layer": layer + 1,
        "linear %": percent["accuracy"][layer],
        "k-NN %": percent["knn"][layer],
        "linear % by layer": percent["accuracy"],
        "k-NN % by layer": percent["knn"],
    }


def summary(runs: list[dict]) -> dict:
    """Each seed's numbers, and mean and standard deviation of the accuracies, in per cent, and of the losses, in nats."""
    out: dict = {"seeds": runs}
    for name, key, unit, scale, places in (
        ("accuracies", "accuracy", "%", 100, 2),
        ("losses", "loss", "nats", 1, 4),
    ):
        if key not in runs[0]:
            continue
        values = [scale * run[key] for run in runs]
        out[f"{name} {unit}"] = [round(value, places) for value in values]
        out[f"mean {unit}"] = round(mean(values), places)
        if len(runs) > 1:
            out[f"deviation {unit}"] = round(stdev(values), places)
    return out


def recorded() -> list[tuple[float, str, str, dict, int]]:
    """(seconds, name, title, values, seed) of every single training that a file of results holds, cheapest first; without
    those that need images from elsewhere.
    """
    found = []
    for name, rows in RESULTS.items():
        path = ROOT / "docs" / "results" / f"{name}.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for title, row in rows.items():
            if row.images:
                continue
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
        return 0.05 * abs(before["loss"])
    p = before["accuracy"]
    return 2 * (2 * p * (1 - p) / before["count"]) ** 0.5


def nightly(count: int = 5) -> bool:
    """Whether the cheapest recorded trainings, done again, end where they did."""
    good = True
    for seconds, name, title, before, seed in recorded()[:count]:
        with tempfile.TemporaryDirectory() as folder:
            after = measure(Run(RESULTS[name][title], Path(folder) / "run", seed))
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


def train_all(
    rows: dict[str, Row],
    seeds: list[int],
    workdir: Path,
    *,
    images: str | None,
    jobs: int,
    limit: float | None,
) -> dict[tuple[str, int], dict]:
    """What `measure` finds of each row and seed, without those that failed or were not done in time."""
    until = math.inf if limit is None else time.monotonic() + limit
    with ThreadPoolExecutor(jobs) as pool:
        started = {
            (title, seed): pool.submit(
                measure,
                Run(row, (workdir / f"{title}-{seed}").absolute(), seed, images, until, quiet=jobs > 1),
            )
            for seed in seeds
            for title, row in rows.items()
        }
    done = {}
    for (title, seed), future in started.items():
        try:
            done[title, seed] = future.result()
        except (subprocess.SubprocessError, OSError, LookupError, ValueError) as error:
            print(f"{title}, seed {seed}: left out: {error}", file=sys.stderr, flush=True)
    return done


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=RESULTS, nargs="?")
    parser.add_argument(
        "--nightly", action="store_true", help="repeat the five cheapest recorded runs and compare"
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workdir", type=Path, default=Path("runs/results"))
    parser.add_argument("--images", help="CIFAR-10 for the rows that need it, such as npz:data/cifar10.npz")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--limit", type=float, help="seconds after which what is not done is stopped")
    parser.add_argument("--output", type=Path, help="the file to write; left out: docs/results/NAME.json")
    flags = parser.parse_args()
    if flags.name is None and not flags.nightly:
        parser.error(f"name a result ({', '.join(RESULTS)}) or --nightly")
    return flags


def main() -> None:
    """See the module's docstring."""
    flags, began = parse(), time.monotonic()
    if flags.nightly:
        sys.exit(not nightly())
    rows, asked = RESULTS[flags.name], [int(seed) for seed in flags.seeds.split(",")]
    workdir = flags.workdir / flags.name
    found = train_all(rows, asked, workdir, images=flags.images, jobs=flags.jobs, limit=flags.limit)
    seeds = [seed for seed in asked if all((title, seed) in found for title in rows)]
    if not seeds:
        sys.exit("no seed was finished by every row; nothing is written")
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    report = workdir / f"{next(iter(rows))}-{seeds[0]}" / "report" / "report.json"
    made_on = json.loads(report.read_text(encoding="utf-8"))["run"]["made_on"]
    result = {
        "command": f"python -m benchmarks.results {flags.name} --seeds={','.join(map(str, seeds))}",
        "commit": git.stdout.strip() or None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seeds,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": f"{made_on['machine']}, {made_on['devices']}",
        "seconds": round(sum(run["seconds"] for (_, seed), run in found.items() if seed in seeds), 1),
        "seconds by the clock": round(time.monotonic() - began, 1),
        "trainings at a time": flags.jobs,
        "values": {title: summary([found[title, seed] for seed in seeds]) for title in rows},
    }
    path = flags.output or ROOT / "docs" / "results" / f"{flags.name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {path}")
    sys.exit(seeds != asked)


if __name__ == "__main__":
    main()
