"""Bytes to a file and back, by a model that predicts the next symbol: lossless, verified before it is written.

The bytes are cut into chunks that decode by themselves, so many of them side by side, each stored as the shortest of the
model's code, LZMA and the bytes as they are; or all is stored as one LZMA, where that is shorter still. The encoder runs the
decoder's own compiled loop to get the probabilities, and decodes what it made. A symbol is a byte, or two for a model of
more than 256 tokens.
"""

import dataclasses
import json
import lzma
import re
from collections.abc import Callable, Sequence
from concurrent import futures

import numpy as np

from crate_jax import InputError
from crate_jax.compression import container, rans
from crate_jax.compression.container import Chunk, Header
from crate_jax.compression.lanes import Lanes
from crate_jax.compression.predictors import Predictor

# A chunk costs 8 bytes in the index: of this many or more the file is at most 0.1 % and a header longer than the data.
MIN_CHUNK = 8192
CHUNK = 16384
LANES = 64
# Above this LZMA does not see all of a file at once: on one core it would take longer than a model on an accelerator.
MOST_AT_ONCE = 1 << 24
# Each may take some 700 MB at this preset, for a chunk of 64 MiB or more.
LZMA_THREADS = 4
_LZMA = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}
# The dictionary of that preset, and the smallest that LZMA2 takes.
_DICTIONARY, _LEAST_DICTIONARY = 1 << 26, 1 << 12
# The header of a grey or RGB image in the formats of Netpbm, in bytes.
_NETPBM = re.compile(rb"P[56](?:\s+(?:#[^\n]*\n\s*)*\d+){3}\s")

Advance = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A file, its chunks as (kind, bytes of the data, bytes of the payload), and the ideal length of those that the model
    coded, Σ log₂(1/p) / 8 bytes.
    """

    data: bytes
    chunks: list[tuple[str, int, int]]
    ideal: float


def encode(
    data: bytes,
    predictor: Predictor,
    *,
    chunk: int = CHUNK,
    lanes: int = LANES,
    context: int | None = None,
    advance: Advance = lambda count: None,
) -> Encoded:
    """The file that `decode` turns back into `data`.

    Args:
      data: any bytes. What precedes the pixels in a .npy, PGM or PPM file is kept apart, so that windows begin with images.
      predictor: the model.
      chunk: bytes of a chunk; made a multiple of what a window adds to its context, so that images or rows stay whole.
      lanes: chunks that are coded side by side, at most.
      context: symbols before a window that it sees again, at most one less than it holds; None: what the model says.
      advance: told of every chunk that is done.
    Raises:
      InputError: a context that the model does not have room for.
    """
    window, width = predictor.num_positions, 1 if predictor.vocab_size <= 256 else 2
    context = predictor.context if context is None else context
    if not 0 <= context < window:
        raise InputError(f"--context: found {context}; accepted: from 0 to {window - 1}")
    unit = width * (window - context)
    chunk = -(-chunk // unit) * unit
    lead = _lead(data)
    # No more lanes than there is work for, up to a power of two: few programs are ever compiled.
    count = -(-(len(data) - lead) // chunk)
    header = Header(
        length=len(data),
        lead=lead,
        chunk=chunk,
        width=width,
        window=window,
        context=context,
        lanes=min(lanes, 1 << max(0, count - 1).bit_length()),
        model=predictor.digest,
        data=container.digest(data),
        environment=predictor.environment,
    )
    sizes = header.sizes
    ends = np.cumsum(sizes)
    parts = [data[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    machine, ideal = Lanes(predictor, header.lanes, context), 0.0
    pool = futures.ThreadPoolExecutor(LZMA_THREADS)
    try:
        waiting = [pool.submit(_without_model, part) for part in parts]
        coded = dict[int, Chunk]()
        for group in _groups(header, len(parts), header.lanes):
            symbols = [_symbols(parts[number], predictor.vocab_size, width) for number in group]
            found = _code(machine, symbols, [waiting[number] for number in group])
            for number, (payload, bits) in zip(group, found, strict=True):
                if payload:
                    coded[number], ideal = Chunk("model", payload), ideal + bits / 8
            advance(len(group))
        stored = [coded.get(number) or chunk.result() for number, chunk in enumerate(waiting)]
    finally:
        # Ctrl-C does not wait for the chunks that LZMA has not begun.
        pool.shutdown(cancel_futures=True)
    if (whole := _at_once(data, stored)) is not None:
        header, stored, ideal = dataclasses.replace(header, lead=0, chunk=len(data), lanes=1), [whole], 0.0
    chunks = [
        (chunk.kind, size, len(chunk.payload)) for chunk, size in zip(stored, header.sizes, strict=True)
    ]
    return Encoded(container.write(header, stored), chunks, ideal)


def _at_once(data: bytes, stored: list[Chunk]) -> Chunk | None:
    """A single chunk of LZMA for all, where that is shorter because it finds again what is far apart."""
    if len(stored) < 2 or len(data) > MOST_AT_ONCE:
        return None
    whole = _without_model(data)
    return whole if len(whole.payload) < sum(len(chunk.payload) for chunk in stored) else None


def _code(
    machine: Lanes, symbols: list[np.ndarray], waiting: list[futures.Future[Chunk]]
) -> list[tuple[bytes, float]]:
    """The model's code of each chunk, decoded again and found right, b"" where what is stored else is as short; and its
    ideal length in bits.
    """
    starts, sizes = machine.measure(symbols)
    payloads = rans.encode(starts, sizes, np.array([len(each) for each in symbols]))
    payloads = [
        payload if len(each) and len(payload) < len(chunk.result().payload) else b""
        for payload, each, chunk in zip(payloads, symbols, waiting, strict=True)
    ]
    # As the decoder will see it: without the chunks that are stored in another way.
    lengths = [len(each) * bool(payload) for each, payload in zip(symbols, payloads, strict=True)]
    found, whole = machine.decode(payloads, lengths)
    bits = _bits(sizes, np.array(lengths))
    payloads = [
        payload if good and np.array_equal(again[: len(each)], each) else b""
        for payload, again, good, each in zip(payloads, found, whole, symbols, strict=True)
    ]
    return list(zip(payloads, bits, strict=True))


def _bits(sizes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Σ log₂(TOTAL / size) of the first symbols of each row, as many as its length says."""
    total = np.zeros(len(sizes))
    for t in range(lengths.max(initial=0)):
        total += np.where(t < lengths, rans.PRECISION - np.log2(np.maximum(sizes[:, t], 1)), 0)
    return total


def decode(
    data: bytes,
    predictor: Predictor,
    name: str = "the file",
    *,
    chunks: Sequence[int] | None = None,
    lanes: int | None = None,
    advance: Advance = lambda count: None,
) -> bytes:
    """The bytes that were encoded.

    Args:
      data: the file.
      predictor: the model that it was encoded with.
      name: what to call the file in errors.
      chunks: the numbers of the chunks to decode, in rising order; None: all of them.
      lanes: chunks that are decoded side by side, of a code in integers; None: as many as were encoded so.
      advance: told of every chunk that is done.
    Raises:
      InputError: a file that is damaged; another model; for a code in floating-point numbers another machine.
    """
    header, stored = container.read(data, name)
    _check(header, predictor, name)
    if lanes is not None and header.environment and lanes != header.lanes:
        raise InputError(
            f"--lanes: found {lanes}; accepted for a code in floating-point numbers: {header.lanes}, as it was encoded"
        )
    wanted = set(range(len(stored)) if chunks is None else chunks)
    sizes, parts = header.sizes, dict[int, bytes | None]()
    lanes = lanes or header.lanes
    machine = Lanes(predictor, lanes, header.context)
    for group in _groups(header, len(stored), lanes):
        coded = [number in wanted and stored[number].kind == "model" for number in group]
        if any(coded):
            # A chunk keeps its lane: floating-point results of equal numbers may differ between the rows of a batch.
            pairs = list(zip(group, coded, strict=True))
            payloads = [stored[number].payload if code else b"" for number, code in pairs]
            lengths = [sizes[number] // header.width * code for number, code in pairs]
            found, whole = machine.decode(payloads, lengths)
            for number, code, symbols, length, good in zip(group, coded, found, lengths, whole, strict=True):
                if code:
                    parts[number] = _bytes(symbols[:length], header.width) if good else None
        advance(len(group))
    for number in wanted - parts.keys():
        parts[number] = _unpacked(stored[number])
    right = all(part is not None and len(part) == sizes[number] for number, part in parts.items())
    out = b"".join(parts[number] for number in sorted(parts)) if right else b""
    if not right or (chunks is None and container.digest(out) != header.data):
        raise InputError(
            f"--input: {name} decodes to something else than was encoded; accepted: the model file and the machine "
            "that encoded it"
        )
    return out


def _check(header: Header, predictor: Predictor, name: str) -> None:
    """Raises InputError for another machine where that matters, or another model."""
    # The machine first: the same run is another model on a device with another type of numbers.
    if header.environment and predictor.environment and header.environment != predictor.environment:
        there, here = json.loads(header.environment), json.loads(predictor.environment)
        differing = [
            f"{key} {there.get(key, 'none')} there, {here.get(key, 'none')} here"
            for key in {**there, **here}
            if there.get(key) != here.get(key)
        ]
        raise InputError(
            f"--input: {name} was encoded in floating-point numbers on another machine ({'; '.join(differing)}); "
            "accepted: the same one, or a file encoded with a portable model"
        )
    if header.model != predictor.digest:
        raise InputError(
            f"--model: found one with SHA-256 {predictor.digest.hex()[:12]}…; accepted for {name}: the "
            f"{'run' if header.environment else 'model file'} with {header.model.hex()[:12]}…, which encoded it"
        )


def _groups(header: Header, count: int, lanes: int) -> list[range]:
    """The numbers of the chunks that go side by side, all but the first one if that is a header."""
    first = int(header.lead > 0)
    return [range(start, min(start + lanes, count)) for start in range(first, count, lanes)]


def _lead(data: bytes) -> int:
    """Bytes before the pixels of an array or image."""
    if data.startswith(b"\x93NUMPY") and len(data) >= 12:
        size = (
            10 + int.from_bytes(data[8:10], "little")
            if data[6] == 1
            else 12 + int.from_bytes(data[8:12], "little")
        )
        return size if size < len(data) else 0
    found = _NETPBM.match(data[:1024])
    return found.end() if found else 0


def _symbols(part: bytes, vocab_size: int, width: int) -> np.ndarray:
    """The symbols of a chunk; none if the model has not all of them."""
    if len(part) % width:
        return np.zeros(0, np.int32)
    symbols = np.frombuffer(part, np.uint8 if width == 1 else "<u2").astype(np.int32)
    return symbols if symbols.max(initial=0) < vocab_size else symbols[:0]


def _bytes(symbols: np.ndarray, width: int) -> bytes:
    return symbols.astype(np.uint8 if width == 1 else "<u2").tobytes()


def _without_model(part: bytes) -> Chunk:
    # Of a small chunk LZMA would take most of its time to clear a dictionary that is never filled.
    size = min(max(len(part), _LEAST_DICTIONARY), _DICTIONARY)
    packed = lzma.compress(part, format=lzma.FORMAT_RAW, filters=[{**_LZMA, "dict_size": size}])
    return Chunk("lzma", packed) if len(packed) < len(part) else Chunk("raw", part)


def _unpacked(chunk: Chunk) -> bytes | None:
    if chunk.kind == "raw":
        return chunk.payload
    try:
        return lzma.decompress(chunk.payload, format=lzma.FORMAT_RAW, filters=[_LZMA])
    except (lzma.LZMAError, EOFError):
        return None
