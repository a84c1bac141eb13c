"""What measures of alignment cost: `python -m benchmarks.alignment WHAT [--torch=PYTHON]`, one JSON object on stdout.

    memory    mutual kNN at n = 25,000, 50,000, 100,000 (d = 384, k = 10): peak memory, seconds
    speed     n = 10,000 beside the formula that platonic-rep releases, in PyTorch: --torch=PYTHON names one that has it
    layers    24 × 24 layers, 500 permutations, n = 1,024: mutual kNN and linear CKA
    networks  how often unrelated networks are found alike, over 200 pairs of 12 × 12 layers

Each measurement runs in a process of its own, so that none sees another's memory.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time

D, K = 384, 10


def features(n, d, seed):
    """Two models' features of n samples: nonlinear views of 32 shared numbers, and noise."""
    import numpy as np

    generator = np.random.default_rng(seed)
    shared = generator.standard_normal((n, 32), np.float32)
    made = []
    for _ in range(2):
        view = np.tanh(shared @ generator.standard_normal((32, d), np.float32) / 32**0.5)
        made.append(view + 0.5 * generator.standard_normal((n, d), np.float32))
    return made


def ours(n, repeats):
    import jax

    from crate_jax import alignment

    a, b = features(n, D, 0)
    before = peak()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        score = float(jax.block_until_ready(alignment.mutual_knn(a, b, K)))
        seconds.append(time.perf_counter() - start)
    return {"n": n, "score": score, "seconds": seconds, "peak_mib": peak(), "before_mib": before}


def released(n, repeats):
    """The formula of platonic-rep, from its description: sort all similarities of a sample, mark its neighbours in an n × n
    mask, intersect the masks."""
    import torch

    torch.set_num_threads(os.cpu_count())
    a, b = (torch.nn.functional.normalize(torch.from_numpy(x), dim=-1) for x in features(n, D, 0))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        masks = []
        for x in (a, b):
            similarity = x @ x.T
            similarity.fill_diagonal_(-1e8)
            nearest = similarity.argsort(dim=1, descending=True)[:, :K]
            mask = torch.zeros(n, n)
            mask[torch.arange(n)[:, None], nearest] = 1.0
            masks.append(mask)
        score = float(((masks[0].bool() & masks[1].bool()).sum(1).float() / K).mean())
        seconds.append(time.perf_counter() - start)
    return {"n": n, "score": score, "seconds": seconds, "peak_mib": peak(), "torch": torch.__version__}


def layers(name, count, repeats):
    import numpy as np

    from crate_jax import alignment

    n, depth = 1024, 24
    generator = np.random.default_rng(0)
    shared = generator.standard_normal((n, 16), np.float32)
    models = []
    for _ in range(2):
        found, x = [], shared
        for _ in range(depth):
            x = np.tanh(1.3 * x @ generator.standard_normal((x.shape[1], D), np.float32) / x.shape[1] ** 0.5)
            found.append(x)
        models.append(found)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = alignment.compare_layers(alignment.measure(name), *models, permutations=count)
        seconds.append(time.perf_counter() - start)
    return {
        "measure": name,
        "layers": [depth, depth],
        "n": n,
        "d": D,
        "permutations": count,
        "seconds": seconds,  # The first includes compilation.
        "score": found.maximum.score,
        "p": found.maximum.p,
        "null_mean": found.maximum.null_mean,
        "peak_mib": peak(),
    }


def networks(name, pairs=200, count=199, n=128):
    """Pairs of untrained networks of 12 layers, each fed inputs of its own: p-values of the maximum over 12 × 12 layers."""
    import numpy as np

    from crate_jax import alignment

    generator = np.random.default_rng(0)
    one, found = alignment.measure(name), []

    def network(width):
        layers, x = [], generator.standard_normal((n, 16), np.float32)
        for _ in range(12):
            x = np.tanh(
                1.3 * x @ generator.standard_normal((x.shape[1], width), np.float32) / x.shape[1] ** 0.5
            )
            layers.append(x)
        return layers

    for pair in range(pairs):
        compared = alignment.compare_layers(one, network(48), network(80), permutations=count, seed=pair)
        smallest = float(compared.pairs.min())
        found.append((compared.maximum.p, smallest, compared.maximum.score))
    p, smallest, scores = np.array(found).T
    return {
        "measure": name,
        "pairs": pairs,
        "permutations": count,
        "n": n,
        "rejected": float(np.mean(p <= 0.05)),
        "some_pair_of_layers_below_5_percent": float(np.mean(smallest <= 0.05)),
        "mean_raw_maximum": float(scores.mean()),
        "p_values": p.tolist(),
    }


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(python, *call):
    """One measurement in a process of its own."""
    command = [python, os.path.abspath(__file__), "--call", json.dumps(call)]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    before = used.ru_utime + used.ru_stime
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr or f"{' '.join(command)} ended with {done.returncode}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = used.ru_utime + used.ru_stime - before
    return {**json.loads(done.stdout), "processor_seconds": processor, "load": os.getloadavg()[0]}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["memory", "speed", "layers", "networks"])
    parser.add_argument("--torch", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--call", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.call:
        name, *rest = json.loads(given.call)
        print(json.dumps(globals()[name](*rest)))
        return
    start = time.perf_counter()
    if given.what == "memory":
        values = [apart(sys.executable, "ours", n, 1) for n in (25_000, 50_000, 100_000)]
    elif given.what == "speed":
        values = {}
        for _ in range(given.repeats):
            for name, python in (("ours", sys.executable), ("released", given.torch)):
                values.setdefault(name, []).append(apart(python, name, 10_000, 2))
        best = {name: min(run["seconds"][-1] for run in runs) for name, runs in values.items()}
        values |= {"best_seconds": best, "ratio": best["released"] / best["ours"]}
    else:
        call = (given.what, "mutual_knn"), (given.what, "cka")
        extra = (500, 2) if given.what == "layers" else ()
        values = [apart(sys.executable, *each, *extra) for each in call]
    import jax

    import crate_jax

    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout
    about = {
        "command": f"python -m benchmarks.alignment {given.what}",
        "commit": commit.strip(),
        "seed": 0,
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "crate_jax": crate_jax.__version__,
        },
        "seconds": time.perf_counter() - start,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, shared with other work",
        "date": datetime.date.today().isoformat(),
        "values": values,
    }
    print(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
