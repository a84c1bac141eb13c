"""How fast the codec is on this machine with a run in floating-point numbers: lanes, encoding, decoding.

    python -m benchmarks.codec_speed --run=runs/english --text=data/english --output=codec-speed.json

The file is made of the .txt files under --text, in the order of their paths, again and again up to --mebibytes: chunks
decode by themselves, so none is shorter for having been there before. First a few windows are decoded with each number of
lanes; then the whole file is encoded with the fastest, verification included, and decoded. What does not fit in --budget
seconds is made smaller or left out, and the result says so. It is written after every part.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent import futures
from pathlib import Path

import jax

from benchmarks.codec import record
from crate_jax.compress import open_predictor
from crate_jax.compression import codec, rans
from crate_jax.compression.lanes import Lanes

CHUNK = codec.MIN_CHUNK
# Of a file, if all of it does not fit in the budget.
PARTS = (1, 2, 4, 8, 16)
# Windows that a number of lanes is tried on.
WINDOWS = 4


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="the folder of a run")
    parser.add_argument("--text", type=Path, required=True, help="a folder with .txt files in it")
    parser.add_argument("--mebibytes", type=float, default=64, help="size of the file")
    parser.add_argument(
        "--lanes", default="1024,2048,4096,8192", help="numbers of chunks side by side to try"
    )
    parser.add_argument("--budget", type=float, default=600, help="seconds for everything")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file; an item in it is replaced")
    flags = parser.parse_args()
    began = time.monotonic()
    device = jax.devices()[0].device_kind
    values: dict = {"device": device, "chunk": CHUNK}

    def note(**new) -> None:
        values.update(new, seconds=time.monotonic() - began)
        record(flags.output, f"float on {device}", values, 0, "benchmarks.codec_speed")
        print(json.dumps(new), flush=True)

    predictor, data = open_predictor(flags.run), text(flags.text, int(flags.mebibytes * 2**20))
    counts = [int(count) for count in flags.lanes.split(",")]
    note(window=predictor.num_positions, context=predictor.context, seconds_to_start=time.monotonic() - began)
    tried = sweep(predictor, counts)
    best = max(tried, key=lambda count: tried[count])
    note(decoding_by_lanes=tried, lanes=best, seconds_until_lanes=time.monotonic() - began)

    def left() -> float:
        return flags.budget - (time.monotonic() - began)

    # Encoding runs the loop twice, and spends as much again of a half on everything else, at a guess.
    data = next((part for part in parts(data) if 2.5 * len(part) / tried[best] < left()), b"")
    note(bytes=len(data))
    if not data:
        return
    encoded = through(data, predictor, best, note)
    expected = 1.2 * values["encoding"]["verifying"]
    if expected > left():
        return note(decoding=f"left out: {expected:.0f} s expected, {left():.0f} s left")
    start = time.perf_counter()
    back = codec.decode(encoded, predictor)
    seconds = time.perf_counter() - start
    assert back == data, "decoding gives back something else"
    note(decoding={"seconds": seconds, "bytes_per_second": len(data) / seconds, "same": True})


def text(folder: Path, size: int) -> bytes:
    """The .txt files under a folder, one after the other, as often as it takes."""
    whole = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.txt")))
    if not whole:
        raise SystemExit(
            f"--text: no .txt file with anything in it under {folder}; accepted: a folder with some"
        )
    return (whole * -(-size // len(whole)))[:size]


def parts(data: bytes) -> list[bytes]:
    """The data, half of them, and so on."""
    return [data[: len(data) // part] for part in PARTS]


def sweep(predictor, counts: list[int]) -> dict[int, float]:
    """Bytes per second of decoding by number of lanes, once compiled."""
    machines = {count: Lanes(predictor, count, predictor.context) for count in counts}
    # The compiler has the processor's cores to itself, and each program takes seconds.
    with futures.ThreadPoolExecutor(len(counts)) as pool:
        list(pool.map(lambda machine: machine.decode([b""], [1]), machines.values()))
    return {count: max(rate(machine, count), rate(machine, count)) for count, machine in machines.items()}


def rate(machine: Lanes, count: int) -> float:
    """Symbols per second that are read from a code, of any content."""
    window, context = machine.predictor.num_positions, machine.context
    length = window + (WINDOWS - 1) * (window - context)
    payloads = [bytes(rans.BYTES_PER_SYMBOL * length)] * count
    start = time.perf_counter()
    machine.decode(payloads, [length] * count)
    return count * length / (time.perf_counter() - start)


def through(data: bytes, predictor, lanes: int, note: Callable[..., None]) -> bytes:
    """The encoded file; notes lengths, and seconds of encoding and of its parts."""
    seconds: Counter = Counter()

    def timed(owner, name: str, part: str):
        function = getattr(owner, name)

        def call(*args, **kwargs):
            start = time.perf_counter()
            found = function(*args, **kwargs)
            seconds[part] += time.perf_counter() - start
            return found

        setattr(owner, name, call)
        return lambda: setattr(owner, name, function)

    named = (
        (Lanes, "measure", "frequencies"),
        (Lanes, "decode", "verifying"),
        (rans, "encode", "entropy coding"),
    )
    undo = [timed(*each) for each in named]
    start = time.perf_counter()
    encoded = codec.encode(data, predictor, chunk=CHUNK, lanes=lanes)
    taken = time.perf_counter() - start
    for each in undo:
        each()
    coded = [(size, payload) for kind, size, payload in encoded.chunks if kind == "model"]
    note(
        file=len(encoded.data),
        bits_per_byte=8 * len(encoded.data) / len(data),
        chunks=Counter(kind for kind, _, _ in encoded.chunks),
        model_coded={
            "bytes": sum(size for size, _ in coded),
            "payload": sum(payload for _, payload in coded),
            "ideal": encoded.ideal,
        },
        encoding={"seconds": taken, "bytes_per_second": len(data) / taken, **seconds},
    )
    return encoded.data


if __name__ == "__main__":
    main()
