"""Speed and memory of crate_jax.objectives, each ratio measured side by side in one run.

python benchmarks/objectives.py            # the torch rows need torch; without it they are left out
"""

import functools
import importlib.util
import resource
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import objectives

HAS_TORCH = importlib.util.find_spec("torch") is not None


def seconds(*functions, repeats=5, clock=time.perf_counter):
    """Median seconds of each function, taken in turn so that a busy machine slows all of them alike; of wall
    time, or of all threads' processor time with `clock=time.process_time`."""
    for function in functions:
        function()
    times = [[] for _ in functions]
    for _ in range(repeats):
        for function, taken in zip(functions, times, strict=True):
            start = clock()
            function()
            taken.append(clock() - start)
    return [float(np.median(taken)) for taken in times]


def compiled(function, *operands):
    start = time.perf_counter()
    program = jax.jit(function).lower(*operands).compile()
    return program, time.perf_counter() - start


def projections():
    return np.random.default_rng(0).normal(size=(64, 12, 197, 64)).astype(np.float32)


def torch_metric(w, eps_sq=0.01):
    """The released metric's formula: unit tokens, ½ logdet of I plus their n × n Gram, summed over heads."""
    import torch

    w = torch.nn.functional.normalize(w, dim=-1)
    n, p = w.shape[-2:]
    return 0.5 * torch.logdet(torch.eye(n) + p / (n * eps_sq) * w @ w.transpose(-1, -2)).sum(-1)


def peak(which):
    """Peak memory in MB over what the inputs and the library take; in a process of its own."""
    w = projections()
    if which == "torch":
        import torch

        run = functools.partial(torch_metric, torch.from_numpy(w))
        torch_metric(torch.from_numpy(w[:1]))
    else:
        on_device = jax.block_until_ready(jnp.asarray(w))
        program, _ = compiled(objectives.released_coding_rate, on_device)
        run = functools.partial(program, on_device)
    samples, done = [], threading.Event()

    def watch():
        while not done.is_set():
            samples.append(resident())
            time.sleep(5e-4)

    before = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    jax.block_until_ready(run()) if which == "jax" else run()
    done.set()
    watcher.join()
    print(max(samples) - before)


def resident():
    """Resident memory of this process in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def measured_peak(which):
    command = [sys.executable, __file__, "--peak", which]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def layer_metric():
    w = projections()
    program, _ = compiled(objectives.released_coding_rate, w)
    on_device = jnp.asarray(w)
    ours = functools.partial(lambda x: program(x).block_until_ready(), on_device)
    yield "layer metric, b=64, 12 heads, n=197, p=64", f"{seconds(ours)[0] * 1e3:.0f} ms"
    if not HAS_TORCH:
        return
    import torch

    tensor = torch.from_numpy(w)
    fast, slow = seconds(ours, lambda: torch_metric(tensor), repeats=5)
    ours_cpu, torch_cpu = seconds(ours, lambda: torch_metric(tensor), repeats=5, clock=time.process_time)
    difference = np.max(np.abs(np.asarray(program(on_device)) / torch_metric(tensor).numpy() - 1))
    yield "… released formula in PyTorch / ours", f"{slow:.2f} s / {fast * 1e3:.0f} ms = {slow / fast:.1f}×"
    yield (
        "… processor time of all threads, PyTorch / ours",
        f"{torch_cpu:.2f} s / {ours_cpu * 1e3:.0f} ms = {torch_cpu / ours_cpu:.1f}×",
    )
    yield "… largest relative difference of the values", f"{difference:.1e}"
    memory = [measured_peak(which) for which in ("torch", "jax")]
    yield (
        "… peak memory over the inputs, PyTorch / ours",
        f"{memory[0]:.0f} MB / {memory[1]:.0f} MB = {memory[0] / max(memory[1], 1):.1f}×",
    )


def subspace_rate():
    n, d, k, p = 4096, 64, 16, 16
    z = jax.random.normal(jax.random.key(0), (n, d))
    bases = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (k, d, p)))[0]

    def rate(z):
        return objectives.subspace_coding_rate(z, bases, eps_sq=0.5)

    def through_cholesky(z):
        w = jnp.einsum("nd,kdp->knp", z, bases)
        gram = jnp.eye(p) + p / (n * 0.5) * jnp.einsum("kni,knj->kij", w, w)
        return jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(gram), axis1=-2, axis2=-1)))

    ours, took = compiled(jax.value_and_grad(rate), z)
    plain, _ = compiled(jax.value_and_grad(through_cholesky), z)
    first, second = seconds(
        lambda: jax.block_until_ready(ours(z)), lambda: jax.block_until_ready(plain(z)), repeats=20
    )
    yield (
        f"R^c value and gradient, n={n}, d={d}, K={k}, p={p}",
        f"{first * 1e3:.1f} ms (autodiff of Cholesky {second * 1e3:.1f} ms), compiled in {took:.1f} s",
    )
    temporary, square = ours.memory_analysis().temp_size_in_bytes / 1e6, f"{n},{n}" in ours.as_text()
    yield (
        "… temporary memory (an n × n array alone is 67 MB)",
        f"{temporary:.1f} MB, n × n in the HLO: {square}",
    )


def gradient_rule():
    """The closed-form gradient against autodiff of Cholesky: time, and error where columns nearly agree."""
    z = jax.random.normal(jax.random.key(0), (64, 197, 64))

    def plain(z):
        gram = jnp.eye(64) + 64 / (197 * 0.5) * jnp.einsum("...ni,...nj->...ij", z, z)
        return jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(gram), axis1=-2, axis2=-1)))

    def ours(z):
        return objectives.coding_rate(z, eps_sq=0.5).sum()

    programs = [compiled(jax.grad(f), z)[0] for f in (ours, plain)]
    first, second = seconds(*[functools.partial(lambda f: f(z).block_until_ready(), f) for f in programs])
    yield (
        "gradient of R, b=64, n=197, d=64: closed form / autodiff of Cholesky",
        f"{first * 1e3:.0f} ms / {second * 1e3:.0f} ms",
    )
    for spread in (1e-2, 1e-3):
        hard = 30 * (z[:1, :, :1] + spread * z[:1])
        u, s, vt = np.linalg.svd(np.asarray(hard[0], np.float64), full_matrices=False)
        alpha = 64 / (197 * 0.5)
        exact = (u * (alpha * s / (1 + alpha * s**2))) @ vt
        errors = [np.linalg.norm(jax.grad(f)(hard)[0] - exact) / np.linalg.norm(exact) for f in (ours, plain)]
        what = f"… relative error, columns {spread:g} apart, of norm 30·√n"
        yield what, f"{errors[0]:.0e} / {errors[1]:.0e}"


def many_classes():
    n, d, classes, some = 4096, 512, 1000, 10
    z = jax.random.normal(jax.random.key(0), (n, d))
    z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    labels = jax.random.randint(jax.random.key(1), (n,), 0, classes)

    def reduction(z):
        return objectives.rate_reduction(z, labels, eps_sq=0.5)

    value, took = compiled(reduction, z)
    slope, took_too = compiled(jax.value_and_grad(reduction), z)
    first, second = seconds(
        lambda: value(z).block_until_ready(), lambda: jax.block_until_ready(slope(z)), repeats=3
    )
    yield f"MCR², {classes} classes, n={n}, d={d}: ΔR", f"{first:.2f} s, compiled in {took:.1f} s"
    yield "… ΔR and gradient", f"{second:.2f} s, compiled in {took_too:.1f} s"

    @jax.jit
    def one_class(z, weight):
        gram = jnp.einsum("ni,n,nj->ij", z, weight, z)
        chol = jnp.linalg.cholesky(jnp.eye(d) + d / (jnp.maximum(weight.sum(), 1) * 0.5) * gram)
        return weight.sum() / n * jnp.sum(jnp.log(jnp.diagonal(chol)))

    def loop():
        return float(sum(one_class(z, (labels == c).astype(jnp.float32)) for c in range(some)))

    (looped,) = seconds(loop, repeats=1)
    loop_time = looped * classes / some
    yield (
        f"… a loop over the classes (R_c alone; {some} timed, scaled)",
        f"{loop_time:.0f} s = {loop_time / first:.0f}×",
    )


def hard_tokens():
    z = jax.random.normal(jax.random.key(0), (16, 197, 64))
    equal = 1e3 * jnp.broadcast_to(z[:, :1], z.shape)
    program, _ = compiled(lambda z: objectives.coding_rate(z, eps_sq=0.5), z)
    easy, hard = seconds(
        lambda: program(z).block_until_ready(), lambda: program(equal).block_until_ready(), repeats=7
    )
    yield (
        "R, b=16, n=197, d=64: random tokens / equal tokens of norm 8e3 (accurate path)",
        f"{easy * 1e3:.1f} ms / {hard * 1e3:.0f} ms",
    )


def main():
    print("| what | measured |\n|---|---|")
    for section in (layer_metric, subspace_rate, gradient_rule, many_classes, hard_tokens):
        for what, figure in section():
            print(f"| {what} | {figure} |", flush=True)


if __name__ == "__main__":
    peak(sys.argv[2]) if "--peak" in sys.argv else main()
