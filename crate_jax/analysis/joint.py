"""Joint against separate: what one model needs for two datasets together, and for the second once it has learned the first.

All lengths are prequential (see `compression.lengths.Prequential`): each batch is coded before the update on it, once. A
model that has learned X has the length L(Y | X) for Y, one that starts afresh L(Y). By L(X, Y) = L(X) + L(Y | X), which
holds for an ideal code, the length of the shuffled union less L(X) estimates the same, for a model that sees both at
once.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from crate_jax import InputError
from crate_jax.data import sources
from crate_jax.data.dataset import DatasetInfo
from crate_jax.parallel.sharding import shard_batch
from crate_jax.runs.config import Config, fit_to_data, steps
from crate_jax.training.building import build
from crate_jax.training.program import compile_program

# The learning rate rises over so many steps and then stays: no length may depend on what is coded later.
WARMUP = 20


@dataclasses.dataclass(frozen=True)
class Joint:
    """Lengths in nats, for one seed.

    Attributes:
      first: L(X).
      second: L(Y).
      second_given_first: L(Y | X), of a model that was trained on X and goes on to Y.
      both: L(X, Y), of the shuffled union.
    """

    seed: int
    first: float
    second: float
    second_given_first: float
    both: float

    @property
    def both_less_first(self) -> float:
        """L(X, Y) − L(X)."""
        return self.both - self.first

    @property
    def saved_in_turn(self) -> float:
        """L(Y) − L(Y | X): what X says of Y; below 0 where having learned X is a burden."""
        return self.second - self.second_given_first

    @property
    def saved_together(self) -> float:
        """L(X) + L(Y) − L(X, Y): what one model of both saves over two."""
        return self.first + self.second - self.both


def sequences(name: str, length: int, most: int) -> tuple[DatasetInfo, np.ndarray]:
    """The training split of a dataset of tokens: what it holds, and at most `most` sequences `[m, length]` in its order,
    none of which shares a token with another.

    Raises:
      InputError: images, or data that cannot be read.
    """
    dataset = sources.open_dataset(name)
    info = dataset.info(name)
    if info.kind in ("images", "pixels"):
        raise InputError(f"{name}: found {info.kind}; accepted: text, or other tokens")
    windows = info.tokens.length is None
    source = dataset.cut(length).load("train")
    stride = length if windows else 1
    count = min(most, (len(source) - 1) // stride + 1)
    return info.cut(length), np.stack([source[i * stride]["tokens"] for i in range(count)])


def measure(config: Config, first: str, second: str, seeds: Sequence[int], most: int) -> list[Joint]:
    """Lengths of two datasets of the same kind of tokens, for each seed.

    Args:
      config: model, batch size and optimiser.
      first: the name of X, such as "stdlib" or "text:PATH".
      second: the name of Y.
      seeds: each decides the parameters that a model starts from and the order of the sequences.
      most: sequences taken of each.
    Raises:
      InputError: other tokens in X than in Y, fewer sequences than a batch, or a model that drops entries.
    """
    info, x = sequences(first, config.model.num_positions, most)
    other, y = sequences(second, config.model.num_positions, most)
    if info.tokens != other.tokens:
        raise InputError(
            f"--second: found {other.kind} of {second}; accepted: the tokens of {first}, {info.kind}"
        )
    if config.model.dropout:
        raise InputError(f"model.dropout: found {config.model.dropout:g}; accepted for a code: 0")
    x, y = (tokens[: len(tokens) // config.batch_size * config.batch_size] for tokens in (x, y))
    for name, tokens in ((first, x), (second, y)):
        if not len(tokens):
            raise InputError(
                f"{name}: found fewer sequences than batch_size {config.batch_size}; accepted: at least one batch"
            )
    code = coder(config, info)
    found = []
    for seed in seeds:
        x_seed, y_seed = _shuffled(x, seed), _shuffled(y, seed + len(seeds))
        in_turn = code(np.concatenate([x_seed, y_seed]), seed)
        batches = len(x) // config.batch_size
        together = code(_shuffled(np.concatenate([x, y]), seed), seed)
        found.append(
            Joint(
                seed=seed,
                first=sum(in_turn[:batches]),
                second_given_first=sum(in_turn[batches:]),
                second=sum(code(y_seed, seed)),
                both=sum(together),
            )
        )
    return found


def coder(config: Config, info: DatasetInfo) -> Callable[[np.ndarray, int], list[float]]:
    """`code(tokens [m, n], seed)`: nats of each batch of a model that starts afresh and learns from each after coding it."""
    optimizer = dataclasses.replace(config.optimizer, end_lr=config.optimizer.lr)
    lengths = {"total": steps(10**6), "warmup": steps(WARMUP), "log": steps(1)}
    config = dataclasses.replace(fit_to_data(config, info), optimizer=optimizer, **lengths)
    run = build(config, info, Path())
    names = {"tokens": np.zeros((1, config.model.num_positions), np.uint8), "index": np.zeros(1, np.int64)}
    with jax.set_mesh(run.mesh):
        program = compile_program(run, names)

    def code(tokens: np.ndarray, seed: int) -> list[float]:
        seeded = dataclasses.replace(run, config=dataclasses.replace(config, seed=seed))
        losses = []
        with jax.set_mesh(run.mesh):
            state = program.initial_state(seeded)
            for batch in _batches(tokens, config.batch_size):
                # With a log at every step the sums are those of this step: the loss before its update.
                state, report = program.train_step(state, shard_batch(batch, run.mesh))
                losses.append(report["sums"]["loss"])
        per_batch = config.batch_size * tokens.shape[1]
        return [per_batch * float(loss) for loss in jax.device_get(losses)]

    return code


def _batches(tokens: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(tokens) - size + 1, size):
        yield {
            "tokens": tokens[start : start + size],
            "index": np.arange(start, start + size, dtype=np.int64),
        }


def _shuffled(tokens: np.ndarray, seed: int) -> np.ndarray:
    return tokens[np.argsort(np.random.Philox(key=seed).random_raw(len(tokens)), kind="stable")]
