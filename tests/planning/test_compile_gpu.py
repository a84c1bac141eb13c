"""CRATE-T's training step compiled for an H100 that is not here. Skipped without its compiler, which `plan` names."""

import importlib.util
import json
import re
import subprocess
from typing import NamedTuple

import pytest
from conftest import ROOT, command, environment

from crate_jax.planning import hlo, traffic

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda13_plugin") is None, reason="jax-cuda13-plugin is not installed"
    ),
]

BATCH, TOKENS, DIM, DEPTH = 64, 197, 384, 12
# Entries of the residual stream; its bytes in bfloat16 are one pass.
STREAM = BATCH * TOKENS * DIM


class Step(NamedTuple):
    """A compiled step: what `plan` says of it, its program, and the instructions of that which do something."""

    plan: dict
    program: str
    instructions: list[hlo.Instruction]

    @property
    def optimiser_bytes(self) -> int:
        """Moved by what comes from the training step but not from the loss and its gradients, nor from their norm."""
        functions = hlo.functions(self.program)

        def label(instruction):
            frame = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
            names = " ".join(functions[int(frame[1]) if frame else 0])
            return "optimiser" if "train_step" in names and not re.search("loss|tree_norm", names) else "rest"

        return sum(
            size for name, _, size in traffic.moved(self.program, by=label).kinds if name == "optimiser"
        )


def compiled(folder, config: str, topology: str = "h100:1", **changes) -> Step:
    file = folder / "program.txt"
    done = subprocess.run(
        [
            *command("plan"),
            f"--config={config}",
            f"--topology={topology}",
            f"--program={file}",
            "--json",
            *(f"--config.{key}={value}" for key, value in changes.items()),
        ],
        cwd=ROOT,
        # The other tests' setting is one of the compiler's on every platform.
        env={**environment(), "JAX_DISABLE_MOST_OPTIMIZATIONS": "false"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    module = hlo.parse(program := file.read_text())
    instructions = [one for one in module.computations[module.entry] if one.opcode not in traffic.FREE]
    return Step(json.loads(done.stdout), program, instructions)


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("step"), "configs/crate.py:tiny", batch_size=BATCH)


def entries(shape: str, dtype: str) -> list[int]:
    """Sizes of the arrays of a type in a shape."""
    return [
        size // (hlo.BITS[dtype] // 8) for text, size in hlo.shapes(shape) if text.startswith(f"{dtype}[")
    ]


def test_attention_is_cudnns(step):
    kinds = [traffic.kind(one) for one in step.instructions]
    # The last layer takes the class token alone, which is one query.
    assert kinds.count("__cudnn$fmhaSoftmax") == kinds.count("__cudnn$fmhaSoftmaxBackward") == DEPTH - 1


def test_matmul_flops(step):
    """Three products of d² for each token and layer, forward and twice backward, and attention's: two forward, four back.

    Of the last layer the class token needs one of the former for all tokens and few of the latter; embedding, head, and the
    products of d³ that make one matrix of ISTA's two are less than a tenth.
    """
    tokens = BATCH * TOKENS
    layers = (DEPTH - 1) * tokens * (3 * 3 * 2 * DIM**2 + 6 * 2 * TOKENS * DIM)
    assert layers < step.plan["flops_per_step"] < 1.1 * layers


def test_bytes_moved(step):
    """Counted operation by operation a layer makes 41 passes over the residual stream; here all that a step moves is less
    than 1.9 times as much, parameters, optimiser, embedding and head included.
    """
    assert 41 * DEPTH * 2 * STREAM < step.plan["moved_bytes"] < 1.9 * 41 * DEPTH * 2 * STREAM
    # Of a layer are kept: its input, W, the heads' output, the tokens in between, both normed, and the result.
    assert step.plan["temp_bytes"] < 8 * DEPTH * 2 * STREAM


def test_nothing_as_large_as_the_residual_stream_is_written_in_float32(step):
    wide = [one.name for one in step.instructions if max(entries(one.shape, "f32"), default=0) >= STREAM]
    assert wide == []


def test_no_transposes_between_layers(step):
    """One as large as the residual stream in the whole step, where the last layer's gradients of W are added up."""
    large = [
        one.name
        for one in step.instructions
        if max(entries(one.shape, "bf16"), default=0) >= STREAM
        and ("transpose" in one.name or one.opcode in ("copy", "transpose"))
    ]
    assert len(large) <= 1, large


def test_lion_passes_over_memory_once(step):
    """Parameters, momentum and gradients are read once and the former two written: five numbers of at most four bytes."""
    assert 4 * 4 * step.plan["num_params"] < step.optimiser_bytes <= 5 * 4 * step.plan["num_params"]


def test_a_momentum_in_bfloat16_is_two_bytes_less_to_read_and_to_write(tmp_path):
    changes = {"optimizer.momentum_dtype": "bfloat16", "model.depth": 2, "batch_size": BATCH}
    step = compiled(tmp_path, "configs/crate.py:tiny", **changes)
    assert step.optimiser_bytes <= 4 * 4 * step.plan["num_params"]


def test_a_deterministic_step_has_no_kernel_that_is_not(tmp_path):
    """Of iGPT, whose gradient adds up the embeddings of equal tokens: sorted first, so that no two are written at once."""
    changes = {"deterministic": True, "model.depth": 2, "batch_size": 8}
    program = compiled(tmp_path, "configs/igpt.py:imagenet32_s", **changes).program
    assert "__cudnn" not in program
    scatters = re.findall(r" scatter\(.*", program)
    assert scatters and all("unique_indices=true" in one for one in scatters)


@pytest.mark.parametrize("mesh", ["dp", "fsdp"])
def test_eight_cards_send_one_another_parameters_and_gradients_only(tmp_path, mesh):
    """No activation is gathered: the residual stream of 64 images alone would be 9.7 MB per layer, the gradients are 4."""
    changes = {"batch_size": BATCH, "model.depth": 2, "model.num_classes": 10, "mesh.preset": mesh}
    plan = compiled(tmp_path, "configs/crate.py:tiny", topology="h100:8", **changes).plan
    assert plan["num_devices"] == 8
    sent = sum(found["bytes"] for found in plan["collectives"].values())
    assert plan["num_params"] < sent < 16 * plan["num_params"]
