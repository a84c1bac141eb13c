"""The other side: released code and libraries in PyTorch, at the sizes that our configuration names."""

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import timing
from benchmarks.workloads import Workload

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Lion:
    """Lion with `torch._foreach` kernels: one launch for all parameters, as a user who cares would run it."""

    def __init__(self, parameters, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.1):
        self.parameters = list(parameters)
        self.moments = [torch.zeros_like(p) for p in self.parameters]
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay

    @torch.no_grad()
    def step(self) -> None:
        """Apply the gradients and forget them."""
        grads = [p.grad for p in self.parameters]
        updates = torch._foreach_lerp(self.moments, grads, 1 - self.betas[0])
        torch._foreach_sign_(updates)
        torch._foreach_lerp_(self.moments, grads, 1 - self.betas[1])
        torch._foreach_mul_(self.parameters, 1 - self.lr * self.weight_decay)
        torch._foreach_add_(self.parameters, updates, alpha=-self.lr)
        for parameter in self.parameters:
            parameter.grad = None


class Training:
    """One step: loss, gradients, Lion; bfloat16 by autocast where it pays."""

    def __init__(self, workload: Workload, model: torch.nn.Module, *, compiled: bool, bf16: bool):
        self.workload = workload
        # What is released starts parts of its parameters uninitialised on no device but the CPU's default one.
        self.model = model.to(DEVICE).train()
        self.forward = torch.compile(self.model) if compiled else self.model
        self.optimizer, self.bf16 = Lion(p for p in self.model.parameters() if p.requires_grad), bf16

    def batch(self, shape: SimpleNamespace) -> None:
        """Random images, or tokens; they stay on the device."""
        torch.manual_seed(0)
        size = self.workload.batch
        if self.workload.unit == "tokens":
            self.inputs = torch.randint(0, shape.vocab_size, (size, shape.num_positions), device=DEVICE)
        else:
            side = shape.image_size
            self.inputs = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, device=DEVICE)
            self.labels = torch.randint(0, shape.num_classes, (size,), device=DEVICE)

    def loss(self) -> torch.Tensor:
        """Cross-entropy in float32."""
        with torch.autocast(DEVICE, torch.bfloat16, enabled=self.bf16):
            if self.workload.unit == "tokens":
                # As the released model does it: a start token before, the last token left out.
                start = torch.full_like(self.inputs[:, :1], self.model.config.vocab_size - 1)
                tokens = torch.cat([start, self.inputs[:, :-1]], dim=1)
                logits = self.forward(input_ids=tokens, use_cache=False).logits
                return F.cross_entropy(logits.float().flatten(0, 1), self.inputs.flatten())
            images = (self.inputs.float() / 255 - 0.45) / 0.225
            return F.cross_entropy(self.forward(images).float(), self.labels, label_smoothing=0.1)

    def run(self, count: int) -> None:
        """`count` steps, done when this returns."""
        for _ in range(count):
            loss = self.loss()
            loss.backward()
            self.optimizer.step()
        self.last = float(loss)

    def compile(self) -> float:
        """Seconds of the first three steps, in which PyTorch compiles."""
        began = time.perf_counter()
        self.run(3)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        return time.perf_counter() - began

    def measure(self, *, steps: int, repeats: int) -> dict[str, Any]:
        """Seconds of a step, memory at the peak."""
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found = {"seconds": timing.seconds(self.run, steps=steps, repeats=repeats), "losses": [self.last]}
        if DEVICE == "cuda":
            found["peak_bytes"] = torch.cuda.max_memory_allocated()
            torch.cuda.empty_cache()
        return found


class Sampling:
    """ImageGPT's `generate` with its cache, the first tokens of each image."""

    def __init__(self, workload: Workload, model: torch.nn.Module, tokens: int):
        self.workload, self.tokens = workload, tokens
        dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
        self.model = model.to(DEVICE, dtype).eval()
        self.start = torch.full((workload.batch, 1), model.config.vocab_size - 1, device=DEVICE)

    @torch.no_grad()
    def run(self, count: int) -> None:
        """`count` batches."""
        for _ in range(count):
            out = self.model.generate(
                self.start, max_new_tokens=self.tokens, min_new_tokens=self.tokens, do_sample=True,
                use_cache=True, eos_token_id=None, pad_token_id=self.model.config.vocab_size - 1,
            )  # fmt: skip
            int(out[0, -1])

    def compile(self) -> float:
        """Seconds of the first batch; nothing is compiled."""
        began = time.perf_counter()
        self.run(1)
        return time.perf_counter() - began

    def measure(self, *, steps: int, repeats: int) -> dict[str, Any]:
        """Seconds of so many tokens of each image; later ones are slower."""
        del steps
        # A warm-up would cost as long as the measurement; `compile` has drawn once.
        taken = timing.seconds(self.run, steps=1, repeats=min(repeats, 2), warm=0)
        return {"seconds": taken, "tokens": self.tokens}


def released(
    workload: Workload, shape: SimpleNamespace, path: str | None, *, sdpa=False, **options
) -> Training:
    """CRATE from a checkout of its authors' code."""
    if path is None:
        raise ValueError("give --peer=PATH, a checkout of the released CRATE")
    module = _load(Path(path) / "model" / "crate.py", "released_crate")
    if sdpa:
        module.Attention.forward = _sdpa_forward
    model = module.CRATE(
        image_size=shape.image_size, patch_size=shape.patch_size, num_classes=shape.num_classes, dim=shape.dim,
        depth=shape.depth, heads=shape.heads, dim_head=shape.head_dim,
    )  # fmt: skip
    return Training(workload, model, **options)


def _sdpa_forward(self, x: torch.Tensor) -> torch.Tensor:
    """The released attention by PyTorch's fused kernel: what a strong user changes first."""
    w = self.qkv(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
    return self.to_out(F.scaled_dot_product_attention(w, w, w, scale=self.scale).transpose(1, 2).flatten(-2))


def timm_vit(workload: Workload, shape: SimpleNamespace, path: str | None, **options) -> Training:
    """ViT of timm."""
    del path
    import timm

    model = timm.models.vision_transformer.VisionTransformer(
        img_size=shape.image_size, patch_size=shape.patch_size, num_classes=shape.num_classes,
        embed_dim=shape.dim, depth=shape.depth, num_heads=shape.heads,
    )  # fmt: skip
    return Training(workload, model, **options)


def image_gpt(shape: SimpleNamespace) -> torch.nn.Module:
    """ImageGPT of transformers. Its vocabulary has one more entry, the start token."""
    import transformers

    config = transformers.ImageGPTConfig(
        vocab_size=shape.vocab_size + 1, n_positions=shape.num_positions, n_embd=shape.dim, n_layer=shape.depth,
        n_head=shape.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.ImageGPTForCausalImageModeling(config)


def _load(file: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


ON_GPU = DEVICE == "cuda"
PEERS: dict[str, Callable] = {
    "released_eager": lambda *args: released(*args, compiled=False, bf16=ON_GPU),
    "released_compiled": lambda *args: released(*args, compiled=True, bf16=ON_GPU),
    "released_bf16": lambda *args: released(*args, compiled=False, bf16=True),
    "released_sdpa_compiled": lambda *args: released(*args, sdpa=True, compiled=True, bf16=ON_GPU),
    "timm_compiled": lambda *args: timm_vit(*args, compiled=True, bf16=ON_GPU),
    "transformers_compiled": lambda w, shape, _: Training(w, image_gpt(shape), compiled=True, bf16=ON_GPU),
    "transformers_cached": lambda w, shape, _: Sampling(w, image_gpt(shape), min(128, shape.num_positions)),
}


def make(workload: Workload, name: str, shape: dict[str, Any], path: str | None) -> Training | Sampling:
    """A peer at the shape of our model: a mapping with the fields of its configuration."""
    shape = SimpleNamespace(**shape)
    made = PEERS[name](workload, shape, path)
    if isinstance(made, Training):
        made.batch(shape)
    return made
