"""What is measured: models and batches by name, the forms that ours runs in, and the peers beside it."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Workload:
    """One comparison.

    Attributes:
      kind: train or sample.
      config: file:variant of our configuration.
      batch: examples in a step.
      unit, per_example: what is counted, and how many of it an example has.
      peers: keys of `peers.PEERS`; the first is the one that ratios are taken against.
      model: fields of the model that differ from the configuration's.
    """

    kind: str
    config: str
    batch: int
    unit: str
    peers: tuple[str, ...]
    per_example: int = 1
    model: tuple[tuple[str, Any], ...] = ()


WORKLOADS = {
    "crate_base": Workload(
        "train", "configs/crate.py:base", 256, "images", ("released_sdpa_compiled", "released_compiled")
    ),
    "crate_large": Workload("train", "configs/crate.py:large", 128, "images", ("released_sdpa_compiled",)),
    "vit_small": Workload("train", "configs/vit.py:small", 256, "images", ("timm_compiled",)),
    "igpt_small": Workload(
        "train", "configs/igpt.py:imagenet32_s", 32, "tokens", ("transformers_compiled",), per_example=1024
    ),
    "igpt_small_sampling": Workload(
        "sample", "configs/igpt.py:imagenet32_s", 64, "tokens", ("transformers_cached",), per_example=1024
    ),
    "crate_tiny": Workload(
        "train",
        "configs/crate.py:tiny",
        16,
        "images",
        ("released_eager", "released_compiled", "released_bf16"),
    ),
}

# Ours in other forms than the default: fields of the model, `deterministic` of the run, `unit` of the kernel (1: tokens are
# padded in every call of attention, not once for all layers), `shared_attention`, and `compiler_options`.
VARIANTS = {
    "default": {},
    "xla": {"attention_kernel": "xla"},
    "scanned": {"scan": True},
    "unrolled": {"scan": False},
    "padded_in_attention": {"unit": 1},
    "deterministic": {"deterministic": True},
    # MSSA by the kernel of benchmarks/shared_attention.py, which needs no padding; the same in a deterministic step.
    "shared_attention": {"shared_attention": True, "unit": 1},
    "deterministic_shared_attention": {"shared_attention": True, "deterministic": True},
    # Matrix products by NVIDIA's library alone, which adds biases and residuals up itself.
    "library_products": {"compiler_options": {"xla_gpu_enable_triton_gemm": False}},
    # Loops as CUDA graphs, so that the host launches one thing per token.
    "graphs": {
        "compiler_options": {
            "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,WHILE,CONDITIONAL",
            "xla_gpu_graph_min_graph_size": 1,
        }
    },
}

# For rehearsals: fields of the model, and of how long is measured.
TINY_IMAGES = {"depth": 2, "dim": 64, "heads": 2, "image_size": 32, "num_classes": 10}
TINY_TOKENS = {"depth": 2, "dim": 64, "heads": 2, "num_positions": 64, "vocab_size": 64}
TINY_BATCH = 4


def tiny(workload: Workload) -> Workload:
    """The same comparison at a size that a CPU runs in a second."""
    tokens = workload.unit == "tokens"
    fields = dict(TINY_TOKENS if tokens else TINY_IMAGES)
    if "crate" in workload.config:
        fields["head_dim"] = 32
    per_example = fields["num_positions"] if tokens else 1
    return dataclasses.replace(
        workload, batch=TINY_BATCH, per_example=per_example, model=tuple(fields.items())
    )
