"""Many sequences under a model at once, window by window: the frequencies of given symbols, or symbols from their code.

A model sees at most `num_positions` symbols. Of a longer sequence the first window codes that many; each one after it begins
with the `context` symbols before it, which are known to both sides, and codes the rest. Both sides run the same compiled
loop over the same shapes, which is what makes their probabilities equal to the last bit in floating-point numbers too.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.compression import rans
from crate_jax.compression.predictors import Predictor

# On a GPU no kernel is chosen by how fast it was just now: another process might choose one with other last bits.
GPU_OPTIONS = {"xla_gpu_deterministic_ops": True, "xla_gpu_autotune_level": 0}


class Lanes:
    """The compiled loop of a model over `count` sequences side by side.

    Args:
      predictor: the model.
      count: lanes; sequences beyond those that are given are empty.
      context: symbols of a window that are those before it, at most `num_positions − 1`.
    """

    def __init__(self, predictor: Predictor, count: int, context: int):
        self.predictor, self.count, self.context = predictor, count, context
        self._window = _compile(predictor, count)

    def measure(self, sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(starts, sizes), int32 `[b, n]`, of every symbol of the sequences: what `rans.encode` takes."""
        lengths = np.array([len(each) for each in sequences])
        given = np.zeros((len(sequences), lengths.max(initial=0)), np.int32)
        for row, each in zip(given, sequences, strict=True):
            row[: len(each)] = each
        # Symbols of one place lie side by side: so the entropy coder takes them.
        starts, sizes = (np.zeros(given.shape, np.int32, order="F") for _ in range(2))
        for first, begin, end in self._windows(given.shape[1]):
            window = self._padded(given[:, first:end])
            coded = slice(begin - first, end - first)
            found = self._run(window, begin - first, end - first, lengths - first, teach=True)
            starts[:, begin:end] = np.asarray(found[1])[: len(given), coded]
            sizes[:, begin:end] = np.asarray(found[2])[: len(given), coded]
        return starts, sizes

    def decode(self, payloads: Sequence[bytes], lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The sequences from their code: (symbols int32 `[b, n]`, bool `[b]`: whether the code ends where it should).

        One that does not is damaged, and its symbols are as good as drawn from the model.
        """
        ends = np.array(lengths)
        tokens = np.zeros((len(payloads), ends.max(initial=0)), np.int32)
        reader, places = rans.open_lanes(list(payloads), self.count), np.full(self.count, rans.STATE_BYTES)
        width = rans.BYTES_PER_SYMBOL * self.predictor.num_positions
        longest = max(map(len, payloads), default=0)
        padded = np.zeros((self.count, longest + width), np.uint8)
        for row, payload in zip(padded, payloads, strict=False):
            row[: len(payload)] = np.frombuffer(payload, np.uint8)
        following, rows = (
            np.lib.stride_tricks.sliding_window_view(padded, width, axis=1),
            np.arange(self.count),
        )
        for first, begin, end in self._windows(tokens.shape[1]):
            window = self._padded(tokens[:, first:end])
            # A damaged code may ask for more than there is.
            data = following[rows, np.minimum(places, longest)]
            reader = rans.Reader(reader.state, np.zeros(self.count, np.int32))
            found = self._run(
                window, begin - first, end - first, ends - first, teach=False, reader=reader, data=data
            )
            tokens[:, begin:end] = np.asarray(found[0])[: len(payloads), begin - first : end - first]
            reader = found[3]
            places = places + np.asarray(reader.place)
        whole = [
            state == rans.LOW and place == len(payload)
            for state, place, payload in zip(np.asarray(reader.state), places, payloads, strict=False)
        ]
        return tokens, np.array(whole, bool)

    def _windows(self, length: int) -> list[tuple[int, int, int]]:
        """(first symbol seen, first symbol coded, end) of each window."""
        size = self.predictor.num_positions
        windows, begin = [], 0
        while begin < length:
            first = max(0, begin - self.context)
            windows.append((first, begin, min(first + size, length)))
            begin = first + size
        return windows

    def _padded(self, tokens: np.ndarray) -> np.ndarray:
        shape = (self.count - len(tokens), self.predictor.num_positions - tokens.shape[1])
        return np.pad(tokens, ((0, shape[0]), (0, shape[1])))

    def _run(self, window, begin, stop, ends, *, teach, reader=None, data=None):
        if reader is None or data is None:
            width = rans.BYTES_PER_SYMBOL * self.predictor.num_positions
            data = np.zeros((self.count, width), np.uint8)
            reader = rans.Reader(np.zeros(self.count, np.uint32), np.zeros(self.count, np.int32))
        ends = np.pad(np.clip(ends, 0, stop), (0, self.count - len(ends))).astype(np.int32)
        known = self.predictor.num_positions if teach else begin
        return self._window(
            self.predictor.params, window, np.int32(known), np.int32(stop), ends, reader, data
        )


@functools.lru_cache(maxsize=8)
def _compile(predictor: Predictor, count: int) -> Callable:
    """`window(params, given [b, n], known, stop, ends [b], reader, data)` → (tokens, starts, sizes `[b, n]`, reader).

    Positions below `known` are given, those from a lane's end on are of no meaning, those from `stop` on are not computed.
    What is given and what is read is decided by numbers, not by the program, so that both sides run the same one.
    """

    @functools.partial(jax.jit, compiler_options=GPU_OPTIONS if jax.default_backend() == "gpu" else None)
    def window(params, given, known, stop, ends, reader, data):
        decode = predictor.decoder(params)

        def step(position, carried):
            previous, cache, reader, out = carried
            sizes, cache = decode(previous, cache, position)
            skipped = (position < known) | (position >= ends)
            symbol, start, size, reader = rans.decode(reader, sizes, given[:, position], skipped, data)
            out = tuple(
                jax.lax.dynamic_update_index_in_dim(whole, new, position, 1)
                for whole, new in zip(out, (symbol, start, size), strict=True)
            )
            return symbol, cache, reader, out

        empty = jnp.zeros(given.shape, jnp.int32)
        start = jnp.zeros(count, jnp.int32), predictor.init_cache(count), reader, (empty, empty, empty)
        _, _, reader, out = jax.lax.fori_loop(0, stop, step, start)
        return *out, reader

    return window
