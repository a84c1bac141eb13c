"""MaskCut of synthetic scenes: agreement with known masks, and its time beside a dense eigen-decomposition.

    python -m benchmarks.maskcut --json=docs/results/maskcut.json

The dense form is that of the released code: scipy.linalg.eigh(D − A, D, subset_by_index=[1, 2]) in float64, once per cut.
Both forms get the same features and take turns; times are processor seconds of one thread.
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import scipy
import threadpoolctl
from scipy.linalg import eigh

from crate_jax.analysis.maskcut import KEPT, iou, maskcut

SIZES, NOISES, SCENES, DIM, SHAPES, TAU = (14, 28, 60), (0.35, 1.0, 1.8), 8, 384, 3, 0.15


def scene(side: int, *, noise: float, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Features `[side², DIM]` of discs on a ground, orthogonal unit directions with noise of norm `noise`; the discs' masks.
    No disc touches another.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    while True:
        labels = np.zeros((side, side), int)
        centres, radii = rng.uniform(0.18, 0.82, (SHAPES, 2)) * side, rng.uniform(0.1, 0.17, SHAPES) * side
        gaps = [
            np.hypot(*(centres[i] - centres[j])) - radii[i] - radii[j]
            for i in range(SHAPES)
            for j in range(i)
        ]
        if min(gaps) > 2:
            break
    for number, ((y, x), radius) in enumerate(zip(centres, radii, strict=True), 1):
        labels[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = number
    means = np.linalg.qr(rng.standard_normal((DIM, SHAPES + 1)))[0].T
    features = means[labels.ravel()] + noise * rng.standard_normal((labels.size, DIM)) / np.sqrt(DIM)
    return features.astype(np.float32), [labels == number for number in range(1, SHAPES + 1)]


def agreement(side: int, noise: float) -> dict[str, float]:
    """IoU of every true object with the best mask that was kept, over SCENES scenes."""
    found = []
    for seed in range(SCENES):
        features, truth = scene(side, noise=noise, seed=seed)
        kept = [cut.mask for cut in maskcut(features, (side, side), threshold=TAU) if cut.verdict == KEPT]
        found += [max((iou(mask, each) for mask in kept), default=0.0) for each in truth]
    return {"mean_iou": float(np.mean(found)), "least_iou": float(np.min(found)), "objects": len(found)}


def dense(features: np.ndarray) -> None:
    """One eigen-decomposition as the released code does it."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    affinity = np.where(unit @ unit.T > TAU, 1.0, 1e-5)
    degrees = np.diag(affinity.sum(axis=1))
    eigh(degrees - affinity, degrees, subset_by_index=[1, 2])


def seconds(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def timing(side: int, repeats: int) -> dict[str, float]:
    """Processor seconds of one cut, the least of the repeats."""
    features, _ = scene(side, noise=1.0, seed=0)
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(seconds(lambda: maskcut(features, (side, side), threshold=TAU, objects=1)))
        theirs.append(seconds(lambda: dense(features)))
    return {"lanczos": min(ours), "dense": min(theirs), "ratio": min(theirs) / min(ours), "repeats": repeats}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    started = time.time()
    values: dict = {"agreement": {}, "time": {}}
    with threadpoolctl.threadpool_limits(1):
        for side in SIZES:
            for noise in NOISES:
                values["agreement"][f"{side}x{side}/{noise}"] = agreement(side, noise)
                print(side, noise, values["agreement"][f"{side}x{side}/{noise}"], flush=True)
            values["time"][f"{side * side} tokens"] = timing(side, arguments.repeats)
            print(side, values["time"][f"{side * side} tokens"], flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    report = {
        "command": "python " + " ".join(sys.argv),
        "commit": commit,
        "seed": f"0 to {SCENES - 1}",
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "seconds": round(time.time() - started, 1),
        "machine": f"{platform.machine()}, one thread of a shared 2-core machine",
        "date": datetime.date.today().isoformat(),
        "values": values,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
