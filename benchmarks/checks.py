"""What has to be right on the device, not only fast: kernels against float64, equal bits, results that travel."""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.shared_attention import Blocks

# (batch, tokens, heads, head width, causal): CRATE-B, CRATE-S, iGPT, an odd small one.
SHAPES = [
    (8, 197, 12, 64, False),
    (8, 197, 12, 48, False),
    (2, 1024, 8, 64, True),
    (3, 65, 4, 32, True),
]
# Of the kernel in `shared_attention`: rows, columns, warps, stages.
BLOCKS = [
    Blocks(64, 64, 4, 2), Blocks(64, 64, 4, 3), Blocks(64, 32, 4, 2), Blocks(32, 64, 4, 2), Blocks(64, 128, 4, 2),
    Blocks(128, 64, 4, 2), Blocks(128, 64, 8, 2), Blocks(64, 256, 8, 1), Blocks(64, 64, 8, 2), Blocks(32, 256, 4, 1),
]  # fmt: skip
# How far from the truth a kernel in bfloat16 may be; the XLA form is at 3e-3 to 6e-3.
ALLOWED = 2e-2


def attention_truth(query, key, value, grad, *, causal: bool) -> dict[str, np.ndarray]:
    """softmax(p^-½ Q Kᵀ) V of `[b, n, heads, p]` and its gradients, float64 on the CPU."""
    q, k, v, g = (np.asarray(x, np.float64).transpose(0, 2, 1, 3) for x in (query, key, value, grad))
    scale = q.shape[-1] ** -0.5
    scores = scale * q @ k.swapaxes(-1, -2)
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = weights @ v
    grad_weights = g @ v.swapaxes(-1, -2)
    grad_scores = scale * weights * (grad_weights - (grad_weights * weights).sum(-1, keepdims=True))
    grads = grad_scores @ k, grad_scores.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ g
    found = dict(zip(("out", "query", "key", "value"), (out, *grads), strict=True))
    found["shared"] = sum(grads)
    return {name: x.transpose(0, 2, 1, 3) for name, x in found.items()}


def distance(found, truth: np.ndarray) -> float:
    """‖found − truth‖ / ‖truth‖."""
    return float(np.linalg.norm(np.asarray(found, np.float64) - truth) / np.linalg.norm(truth))


def kernels(*, small: bool) -> dict:
    """Each kernel of attention that runs here, and the XLA form, at how far from float64: by shape, dtype, output."""
    from crate_jax.models import attention

    found = {}
    names = [name for name, kernel in attention.KERNELS.items() if jax.default_backend() in kernel.platforms]
    for shape in SHAPES[-1:] if small else SHAPES:
        b, n, heads, p, causal = shape
        rng = np.random.default_rng(n + p)
        arrays = [rng.normal(size=(b, n, heads, p)).astype(jnp.bfloat16) for _ in range(4)]
        truth = attention_truth(*arrays, causal=causal)
        shared = attention_truth(*arrays[:1] * 3, arrays[3], causal=causal)
        for name in names:
            try:
                found[f"{shape} {name}"] = _one_kernel(arrays, truth, shared, kernel=name, causal=causal)
            except Exception as error:  # What a kernel does not take is a result.
                found[f"{shape} {name}"] = {"error": f"{type(error).__name__}: {error}"[:300]}
    wrong = [
        name
        for name, errors in found.items()
        if "error" in errors or not all(error <= ALLOWED for error in errors.values())
    ]
    return {"wrong": ", ".join(wrong) or "none", **found}


def _one_kernel(arrays, truth, shared, *, kernel: str, causal: bool) -> dict[str, float]:
    """Distances from the truth, all from one program: every shape costs one compilation."""
    from crate_jax.models import attention

    *operands, grad = (jnp.asarray(x) for x in arrays)
    options = {"causal": causal, "kernel": kernel}
    n = grad.shape[1]
    # Padding that is not zero must change nothing, and no gradient may come out of it.
    extra = ((0, 0), (0, -n % 8), (0, 0), (0, 0))
    padded = jnp.pad(operands[0], extra, constant_values=3)

    @jax.jit
    def all_of(operands, padded, grad):
        out, pull = jax.vjp(functools.partial(attention.attend, **options), *operands)
        shared, pull_shared = jax.vjp(functools.partial(attention.attend_shared, **options), operands[0])
        long, pull_long = jax.vjp(functools.partial(attention.attend_shared, real=n, **options), padded)
        (longer,) = pull_long(jnp.pad(grad, extra))
        return (out, *pull(grad)), (shared, *pull_shared(grad)), (long[:, :n], longer[:, :n], longer[:, n:])

    three, one, (long, longer, outside) = all_of(operands, padded, grad)
    names = ("out", "query", "key", "value")
    errors = {name: distance(x, truth[name]) for name, x in zip(names, three, strict=True)}
    for name, (out, gradient) in {"shared": one, "padded": (long, longer)}.items():
        errors |= {
            f"{name} out": distance(out, shared["out"]),
            f"{name} gradient": distance(gradient, shared["shared"]),
        }
    return errors | {"gradient of padding": float(jnp.sum(jnp.abs(outside.astype(jnp.float32))))}


def equal_bits(*, small: bool, deterministic: bool = False) -> dict:
    """Whether three training steps give the same bits twice."""
    from benchmarks import ours
    from benchmarks.workloads import WORKLOADS, tiny

    workload = tiny(WORKLOADS["crate_tiny"]) if small else WORKLOADS["crate_tiny"]
    fields = {"dtype": "float32" if small else "bfloat16", "deterministic": deterministic}
    training = ours.Training(workload, fields)
    training.compile()

    def three_steps():
        training.start()
        training.steps(3)
        return jax.device_get(training.state.params)

    first, second = three_steps(), three_steps()
    differing = sum(
        int(np.sum(a != b)) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )
    return {"parameters that differ": differing, "of": sum(x.size for x in jax.tree.leaves(first))}


def portable(*, small: bool) -> dict:
    """Outputs and gradients of a CRATE-T on this device against float32 on the CPU: norms of the difference over the norm.

    In float32 with matrix products as the device does them by default and at full precision, and in bfloat16 with the
    platform's own kernel and with XLA's.
    """
    from crate_jax import models

    size = {"depth": 2, "image_size": 32} if small else {}
    config = models.crate("tiny", dtype="float32", **size)
    model = models.create(config)
    side = model.config.image_size
    images = np.random.default_rng(0).normal(size=(4, side, side, 3)).astype(np.float32)
    cpu = jax.devices("cpu")[0]

    def logits_and_grads(params, images, model=model):
        def loss(params):
            logits, _ = model.apply(params, images)
            return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[:, 0]), logits

        grads, logits = jax.grad(loss, has_aux=True)(params)
        return logits, jnp.concatenate([x.ravel() for x in jax.tree.leaves(grads)])

    with jax.default_device(cpu):
        params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
        expected = jax.device_get(jax.jit(logits_and_grads)(params, images))
    found = {}
    for precision in ("default", "highest"):
        with jax.default_matmul_precision(precision):
            got = jax.device_get(jax.jit(logits_and_grads)(params, images))
        for name, x, y in zip(("logits", "gradients"), got, expected, strict=True):
            found[f"{name}, {precision} precision"] = distance(x, y)
    for kernel in ("auto", "xla"):
        rounded = models.create(dataclasses.replace(config, dtype="bfloat16", attention_kernel=kernel))
        got = jax.device_get(jax.jit(functools.partial(logits_and_grads, model=rounded))(params, images))
        for name, x, y in zip(("logits", "gradients"), got, expected, strict=True):
            found[f"{name}, bfloat16, {kernel}"] = distance(x, y)
    return found


def shared_attention(*, small: bool) -> dict:
    """softmax(s W Wᵀ) W of CRATE-B at batch 256, padded to 200 tokens: cuDNN's kernel and the one in `shared_attention` with
    work cut up in several ways. Milliseconds forward and backward, distances from float64, whether two gradients are equal.
    """
    from benchmarks import shared_attention as kernel
    from crate_jax.models import attention

    shape, real = ((1, 24, 1, 16), 21) if small else ((256, 200, 12, 64), 197)
    w, grad = (jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16) for seed in (0, 1))
    grad = grad.at[:, real:].set(0)
    few = [np.asarray(x[:2, :real]) for x in (w, grad)]
    truth = attention_truth(few[0], few[0], few[0], few[1], causal=False)
    library = "cudnn" if jax.default_backend() == "gpu" else "xla"
    forms = {library: functools.partial(attention.attend_shared, real=real, kernel=library)}
    for blocks in [kernel.Blocks(16, 16)] if small else BLOCKS:
        name = f"{blocks.rows} × {blocks.columns}, {blocks.warps} warps, {blocks.stages} stages"
        forms[name] = functools.partial(
            kernel.attend, real=real, forward=blocks, backward=blocks, interpret=small
        )
    found = {}
    for name, form in forms.items():
        try:
            found[name] = _forward_and_backward(form, w, grad, truth, real)
        except Exception as error:  # Blocks that the chip has no room for are a result.
            found[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
    return found


def _forward_and_backward(form: Callable, w, grad, truth, real: int) -> dict:
    forward, backward = jax.jit(lambda w: jax.vjp(form, w)), jax.jit(lambda pull, grad: pull(grad)[0])
    out, pull = forward(w)
    first, second = backward(pull, grad), backward(pull, grad)
    return {
        "forward ms": _timed(forward, w)["ms"],
        "backward ms": _timed(backward, pull, grad)["ms"],
        "out": distance(out[:2, :real], truth["out"]),
        "gradient": distance(first[:2, :real], truth["shared"]),
        "equal bits": bool(jnp.all(first == second)),
    }


def layer_metric(*, small: bool) -> dict:
    """Seconds of the released layer-wise metric, b 64, 12 heads, 197 tokens of 64."""
    from crate_jax import objectives

    shape = (2, 2, 20, 8) if small else (64, 12, 197, 64)
    w = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    return _timed(jax.jit(objectives.released_coding_rate), w)


def coding_rate_gradient(*, small: bool) -> dict:
    """Seconds of the gradient of R, b 64, n 197, d 384 Gaussian numbers, ε² 0.5."""
    from crate_jax import objectives

    shape = (2, 20, 8) if small else (64, 197, 384)
    z = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    return _timed(jax.jit(jax.grad(lambda z: objectives.coding_rate(z, eps_sq=0.5).sum())), z)


def _timed(function: Callable, *operands) -> dict:
    began = time.perf_counter()
    jax.block_until_ready(function(*operands))
    first = time.perf_counter() - began

    def run(count):
        for _ in range(count):
            out = function(*operands)
        jax.block_until_ready(out)

    found = timing.summary(timing.seconds(run, steps=10, repeats=6))
    return {"ms": 1e3 * found["median"], "min ms": 1e3 * found["min"], "first call s": first}


CHECKS = {
    "kernels": kernels,
    "equal_bits": equal_bits,
    "equal_bits_deterministic": functools.partial(equal_bits, deterministic=True),
    "portable": portable,
    "shared_attention": shared_attention,
    "layer_metric": layer_metric,
    "coding_rate_gradient": coding_rate_gradient,
}
