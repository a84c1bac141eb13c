"""The formulas of the objectives in PyTorch, timed on the device as `checks` times ours."""

import numpy as np
import torch

from benchmarks import timing

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def released_metric(w: torch.Tensor, eps_sq: float = 0.01) -> torch.Tensor:
    """Unit tokens, ½ logdet of I plus their n × n Gram, summed over heads."""
    w = torch.nn.functional.normalize(w, dim=-1)
    n, p = w.shape[-2:]
    eye = torch.eye(n, device=w.device)
    return 0.5 * torch.logdet(eye + p / (n * eps_sq) * w @ w.transpose(-1, -2)).sum(-1)


def layer_metric(*, small: bool) -> dict:
    """See `checks.layer_metric`."""
    shape = (2, 2, 20, 8) if small else (64, 12, 197, 64)
    w = _normal(shape)
    return _timed(lambda: released_metric(w))


def coding_rate_gradient(*, small: bool) -> dict:
    """See `checks.coding_rate_gradient`; the smaller of the two Gram matrices."""
    shape = (2, 20, 8) if small else (64, 197, 384)
    z = _normal(shape).requires_grad_()
    n, d = shape[-2:]

    def run():
        z.grad = None
        gram = z @ z.transpose(-1, -2) if n < d else z.transpose(-1, -2) @ z
        eye = torch.eye(gram.shape[-1], device=DEVICE)
        (0.5 * torch.logdet(eye + d / (n * 0.5) * gram)).sum().backward()

    return _timed(run)


def _normal(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32)).to(DEVICE)


def _timed(function) -> dict:
    def run(count):
        for _ in range(count):
            function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    found = timing.summary(timing.seconds(run, steps=10, repeats=6))
    return {"ms": 1e3 * found["median"], "min ms": 1e3 * found["min"]}


CHECKS = {"layer_metric": layer_metric, "coding_rate_gradient": coding_rate_gradient}
