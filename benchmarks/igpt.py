"""iGPT against Hugging Face's ImageGPT and against sampling without a cache, side by side in one run on this machine.

    python benchmarks/igpt.py [--depth=24 --batch=16 --sample_steps=32 --repeats=3 --output=FILE.json]

Weights are random, of iGPT-S's shape (512 wide, 8 heads, 1,024 positions), float32. Sampling is timed a row of pixels at a
time at several prefix lengths, fitted by a polynomial, and the time of all 1,024 tokens follows: for our cache linear in the
length of its stage, for Hugging Face's linear in that of the prefix, without a cache quadratic in it. Training is one step
(loss, gradients, Adam) on whole images, the layers unrolled, each library in processes of its own, by turns: in one process
the memory that PyTorch gives back makes our step's page faults five times as dear (user time the same, 5 s of system time
more). Without torch and transformers their columns are left out. `cpu` is processor time, which other programs on the
machine disturb less than `wall` time. On a machine that is not idle give each a thread, OMP_NUM_THREADS=1 PJRT_NPROC=1:
PyTorch's threads wait for one another by spinning, which counts as processor time.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from crate_jax import models
from crate_jax.models import sampling

try:
    import torch
    import transformers
except ImportError:
    torch = transformers = None

DEPTH = flags.DEFINE_integer("depth", 24, "Layers; 24 is iGPT-S.")
BATCH = flags.DEFINE_integer("batch", 16, "Images drawn at once.")
TRAIN_BATCH = flags.DEFINE_integer("train_batch", 1, "Images in a training step.")
POSITIONS = flags.DEFINE_integer("positions", 1024, "Tokens of an image.")
SAMPLE_STEPS = flags.DEFINE_integer("sample_steps", 32, "Tokens timed at a time.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Each is timed so often, in turn; the median counts.")
OUTPUT = flags.DEFINE_string("output", None, "A JSON file for the figures.")
TRAIN = flags.DEFINE_string(
    "train", None, "Used by the program itself: time the training of this one, print it, end."
)


def clock() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def timed(function: Callable[[], object]) -> np.ndarray:
    """(wall, cpu) seconds."""
    start = clock()
    function()
    return clock() - start


def in_turn(functions: dict[str, Callable[[], np.ndarray]]) -> dict[str, np.ndarray]:
    """The median of what each function returns, all of them called in turn so that they share the machine's moods."""
    values: dict[str, list] = {name: [] for name in functions}
    for _ in range(REPEATS.value):
        for name, function in functions.items():
            values[name].append(function())
    return {name: np.median(np.array(value), axis=0) for name, value in values.items()}


class Ours:
    """The model of this package on one device."""

    def __init__(self):
        config = models.igpt(
            "s", depth=DEPTH.value, num_positions=POSITIONS.value, dtype="float32", scan=False
        )
        self.model = models.create(config)
        self.params = jax.jit(self.model.init)(jax.random.key(0))
        self.tokens = jax.random.randint(
            jax.random.key(1), (BATCH.value, POSITIONS.value), 0, config.vocab_size
        )
        self.keys = jax.random.split(jax.random.key(2), BATCH.value)
        self.sampler = sampling.make_sampler(self.model, SAMPLE_STEPS.value, sampling.SamplingParams())
        self.states = {}
        self.uncached = jax.jit(lambda params, tokens: self.model.apply(params, tokens)[0][:, -1])
        self.optimizer, self.moments = optax.adam(1e-3, b2=0.95), None
        self.train_step = jax.jit(self._train_step, donate_argnums=(0, 1))

    def draw(self, length: int) -> np.ndarray:
        """Seconds a token of every image, the cache of a length of the sampler's."""
        position = length - SAMPLE_STEPS.value
        if length not in self.states:
            previous, cache = self.tokens[:, 0], self.model.init_cache(BATCH.value, length)
            self.states[length] = sampling.State(position, previous, cache)

        def run():
            state = self.states[length]._replace(position=position)
            self.states[length], tokens = self.sampler(self.params, state, self.tokens, 0, self.keys)
            tokens.block_until_ready()

        return timed(run) / SAMPLE_STEPS.value

    def draw_uncached(self, length: int) -> np.ndarray:
        """Seconds of the whole forward pass that one more token costs without a cache."""
        return timed(lambda: self.uncached(self.params, self.tokens[:, :length]).block_until_ready())

    def train(self) -> np.ndarray:
        if self.moments is None:
            self.trained = jax.tree.map(jnp.copy, self.params)
            self.moments = jax.jit(self.optimizer.init)(self.trained)

        def run():
            batch = self.tokens[: TRAIN_BATCH.value]
            self.trained, self.moments, loss = self.train_step(self.trained, self.moments, batch)
            loss.block_until_ready()

        return timed(run)

    def _train_step(self, params, moments, tokens):
        def loss_fn(params):
            logits, _ = self.model.apply(params, tokens)
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, moments = self.optimizer.update(grads, moments)
        return optax.apply_updates(params, updates), moments, loss


class HuggingFace:
    """ImageGPT of transformers, eager PyTorch on the CPU with the same number of threads."""

    def __init__(self):
        config = transformers.ImageGPTConfig(
            vocab_size=513, n_positions=POSITIONS.value, n_embd=512, n_layer=DEPTH.value, n_head=8,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        self.model = transformers.ImageGPTForCausalImageModeling(config).float()
        self.tokens = torch.randint(0, 512, (BATCH.value, POSITIONS.value))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, betas=(0.9, 0.95))

    def draw(self, length: int) -> np.ndarray:
        """Seconds a token of every image, by `generate` with a cache of `length` tokens, filled with noise to save time."""
        moments, cache = [], transformers.DynamicCache()
        shape = (BATCH.value, self.model.config.n_head, length - 1, 512 // self.model.config.n_head)
        for layer in range(DEPTH.value):
            cache.update(torch.randn(shape), torch.randn(shape), layer)

        def note(ids, scores):
            moments.append(clock())
            return scores

        self.model.eval()
        with torch.no_grad():
            self.model.generate(
                input_ids=self.tokens[:, :length], past_key_values=cache,
                max_new_tokens=SAMPLE_STEPS.value + 1, do_sample=True, top_k=0,
                use_cache=True, eos_token_id=None, pad_token_id=512,
                logits_processor=transformers.LogitsProcessorList([note]),
            )  # fmt: skip
        return np.median(np.diff(moments, axis=0), axis=0)

    def train(self) -> np.ndarray:
        self.model.train()
        ids = torch.cat(
            [torch.full((TRAIN_BATCH.value, 1), 512), self.tokens[: TRAIN_BATCH.value, :-1]], dim=1
        )

        def run():
            logits = self.model(input_ids=ids, use_cache=False).logits
            targets = self.tokens[: TRAIN_BATCH.value].reshape(-1)
            loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

        return timed(run)


def whole(lengths: list[int], seconds: list[np.ndarray], degree: int, all_lengths: np.ndarray) -> np.ndarray:
    """Seconds of all tokens, whose lengths are given, from those of one token at a few lengths."""
    fits = [np.polyfit(lengths, np.array(seconds)[:, i], degree) for i in range(2)]
    return np.array([np.polyval(fit, all_lengths).sum() for fit in fits])


def measure_sampling(ours: Ours, other: "HuggingFace | None") -> dict[str, np.ndarray]:
    n = POSITIONS.value
    lengths = {"cached": [n // 10, n // 2, 9 * n // 10], "uncached": [n // 16, n // 8, n // 4]}
    functions = {}
    lengths["ours"] = [sampling.cache_length(ours.model, length) for length in lengths["cached"]]
    for length in lengths["ours"]:
        ours.draw(length)
        functions[f"ours {length}"] = lambda length=length: ours.draw(length)
    for length in lengths["uncached"]:
        ours.draw_uncached(length)
        functions[f"uncached {length}"] = lambda length=length: ours.draw_uncached(length)
    if other:
        for length in lengths["cached"]:
            functions[f"hf {length}"] = lambda length=length: other.draw(length)
    measured = in_turn(functions)
    for name, (wall, cpu) in measured.items():
        print(
            f"  a token of {BATCH.value} images, {name}: {1e3 * wall:.0f} ms wall, {1e3 * cpu:.0f} ms cpu",
            flush=True,
        )
    uncached = [measured[f"uncached {length}"] for length in lengths["uncached"]]
    drawn = [measured[f"ours {length}"] for length in lengths["ours"]]
    positions = np.arange(1, n + 1)
    stages = np.array([sampling.cache_length(ours.model, i) for i in positions])
    totals = {
        "cache": whole(lengths["ours"], drawn, 1, stages),
        "no cache": whole(lengths["uncached"], uncached, 2, positions),
    }
    if other:
        cached = [measured[f"hf {length}"] for length in lengths["cached"]]
        totals["hugging face"] = whole(lengths["cached"], cached, 1, positions)
    return totals


def train(name: str) -> np.ndarray:
    """(wall, cpu) seconds of a training step, the median of three after a first one."""
    engine = {"ours": Ours, "hugging face": HuggingFace}[name]()
    return np.median([engine.train() for _ in range(4)][1:], axis=0)


def train_in_process(name: str) -> np.ndarray:
    command = [sys.executable, *sys.argv, f"--train={name}"]
    return np.array(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def main(_):
    if TRAIN.value:
        print(json.dumps(train(TRAIN.value).tolist()))
        return
    threads = torch.get_num_threads() if torch else None
    other = HuggingFace() if torch else None
    ours = Ours()
    print(
        f"depth {DEPTH.value}, {ours.model.num_params:,} parameters, float32, torch threads {threads}",
        flush=True,
    )
    sampled = measure_sampling(ours, other)
    functions = {"ours": lambda: train_in_process("ours")}
    if other:
        functions["hugging face"] = lambda: train_in_process("hugging face")
    trained = in_turn(functions)
    report = {"depth": DEPTH.value, "batch": BATCH.value, "threads": threads, "sampling": {}, "training": {}}
    print(f"\nsampling {BATCH.value} images of {POSITIONS.value} tokens (seconds; times as long as ours)")
    for name, seconds in sampled.items():
        ratio = seconds / sampled["cache"]
        report["sampling"][name] = {
            "wall": seconds[0],
            "cpu": seconds[1],
            "ratio_wall": ratio[0],
            "ratio_cpu": ratio[1],
        }
        print(
            f"  {name:13} wall {seconds[0]:8.1f} ({ratio[0]:6.2f}×)   cpu {seconds[1]:8.1f} ({ratio[1]:6.2f}×)"
        )
    count = TRAIN_BATCH.value * POSITIONS.value
    print(
        f"training on {TRAIN_BATCH.value} images of {POSITIONS.value} tokens a step (tokens a second; seconds against ours)"
    )
    for name, seconds in trained.items():
        ratio = seconds / trained["ours"]
        report["training"][name] = {
            "wall": seconds[0],
            "cpu": seconds[1],
            "ratio_wall": ratio[0],
            "ratio_cpu": ratio[1],
        }
        print(
            f"  {name:13} {count / seconds[0]:8.0f} tokens/s ({ratio[0]:5.2f}×)   cpu {seconds[1]:6.2f} s ({ratio[1]:5.2f}×)"
        )
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
