"""Files through the codec and through coders that everyone has; writes a result for docs/codec.md.

    python -m benchmarks.codec --item=text --input=FILE --run=runs/text --portable=text.npz --output=codec.json

Each file is encoded with the run (floating-point numbers) and with the portable model, and decoded here, which is timed, and
in a process of its own. For large files --once leaves out the first; their decoding time has a start of Python in it.
With --images=H,W,C its bytes after the header of a .npy file are images of that shape, and image coders see them too. The
speed of a decoder without a cache is that of the model's forward pass over a whole window for every symbol.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from crate_jax.compress import open_predictor
from crate_jax.compression import baselines, codec, rans
from crate_jax.compression.lanes import Lanes
from crate_jax.training.opening import open_run

ROOT = Path(__file__).parents[1]
SPEED_LANES = (1, 8, 16, 32, 64)
PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--item", required=True, help="what the file is called")
    parser.add_argument("--input", type=Path, required=True, help="the file")
    parser.add_argument("--run", required=True, help="the folder of a run")
    parser.add_argument("--portable", help="the portable model of that run")
    parser.add_argument("--images", help="H,W,C: the shape of an image")
    parser.add_argument("--once", action="store_true", help="decode in the other process only")
    parser.add_argument("--chunk", type=int, default=codec.CHUNK, help="bytes of a chunk")
    parser.add_argument("--lanes", type=int, default=codec.LANES, help="chunks side by side, at most")
    parser.add_argument("--speed", action="store_true", help="compare with a decoder without a cache too")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file; an item in it is replaced")
    flags = parser.parse_args()
    os.environ.setdefault(
        "PJRT_NPROC", "4"
    )  # As the command has it: floating-point codes decode with as many threads.
    began = time.monotonic()
    data = flags.input.read_bytes()
    values = {
        "bytes": len(data),
        "coders": {name: coder(data) for name, coder in baselines.file_coders().items()},
    }
    if flags.images:
        images = np.load(flags.input).reshape(-1, *map(int, flags.images.split(",")))
        values["coders"] |= {name: coder(images) for name, coder in baselines.image_coders().items()}
    for model in filter(None, (flags.run, flags.portable)):
        predictor = open_predictor(model)
        values[predictor.numerics] = through(data, predictor, model, flags)
        if flags.portable is None or model == flags.portable:
            values[predictor.numerics]["model_bytes"] = (
                os.path.getsize(model) if os.path.isfile(model) else None
            )
    if flags.speed:
        values["without cache"] = [without_cache(flags.run, lanes) for lanes in SPEED_LANES]
    record(flags.output, flags.item, values, time.monotonic() - began)


def through(data: bytes, predictor, model: str, flags: argparse.Namespace) -> dict:
    """Lengths, seconds, and whether another process gives the data back."""
    options = {"chunk": flags.chunk, "lanes": flags.lanes}
    # One symbol compiles what all others run.
    chunks = -(-len(data) // flags.chunk)
    lanes = min(flags.lanes, 1 << max(0, chunks - 1).bit_length())
    Lanes(predictor, lanes, predictor.context).measure([np.zeros(1, np.int32)])
    encoded, encoding = timed(lambda: codec.encode(data, predictor, **options))
    decoding = None if flags.once else timed(lambda: codec.decode(encoded.data, predictor))[1]
    with tempfile.TemporaryDirectory() as folder:
        coded, back = Path(folder) / "coded", Path(folder) / "back"
        coded.write_bytes(encoded.data)
        words = ["decode", f"--input={coded}", f"--output={back}", f"--model={model}"]
        command = [sys.executable, "-m", "crate_jax.compress", *words]
        _, elsewhere = timed(lambda: subprocess.run(command, cwd=ROOT, check=True))
        same = back.read_bytes() == data
    assert same, f"{model}: another process gives back something else"
    coded = [(size, payload) for kind, size, payload in encoded.chunks if kind == "model"]
    return {
        "file": len(encoded.data),
        "bits per byte": 8 * len(encoded.data) / len(data) if data else None,
        "chunks": {
            kind: sum(kind == each for each, _, _ in encoded.chunks) for kind in ("model", "lzma", "raw")
        },
        "payload of the model's chunks": sum(payload for _, payload in coded),
        "ideal of the model's chunks": encoded.ideal,
        "payload over ideal, %": 100 * (sum(payload for _, payload in coded) / encoded.ideal - 1)
        if coded
        else None,
        "encoding": encoding,
        "decoding": decoding,
        "encoding over decoding": decoding and encoding["processor"] / decoding["processor"],
        "decoding by another process, with its start": elsewhere,
        "another process gives it back": same,
    }


def timed(function):
    """(what it returns, seconds by the clock and of processor time, those of processes that it waited for included)."""
    before, clock = os.times(), time.perf_counter()
    found = function()
    after, seconds = os.times(), time.perf_counter() - clock
    return found, {"clock": seconds, "processor": sum(after[:4]) - sum(before[:4])}


def without_cache(run: str, lanes: int) -> dict:
    """Processor seconds per symbol of a decoder with a cache and of one without, on this machine, each at its best of 5."""
    opened = open_run(Path(run))
    model, params = opened.run.model, opened.params
    predictor = open_predictor(run)
    length = predictor.num_positions
    tokens = np.zeros((lanes, length), np.int32)
    forward = jax.jit(lambda params, tokens: jax.nn.softmax(model.apply(params, tokens)[0][:, -1]))
    machine = Lanes(predictor, lanes, 0)
    payloads = [bytes(rans.BYTES_PER_SYMBOL * length)] * lanes

    def seconds(function, count):
        function()
        taken = []
        for _ in range(5):
            start = time.process_time()
            function()
            taken.append(time.process_time() - start)
        return min(taken) / count

    cached = seconds(lambda: machine.decode(payloads, [length] * lanes), lanes * length)
    whole = seconds(lambda: jax.block_until_ready(forward(params, tokens)), lanes)
    return {
        "lanes": lanes,
        "window": length,
        "cached": cached,
        "whole": whole,
        "times as fast": whole / cached,
    }


def record(path: Path, item: str, values: dict, seconds: float, module: str = "benchmarks.codec") -> None:
    """Write the item into the file."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(
        json.dumps(
            {
                "command": f"python -m {module}",
                "commit": commit(),
                "date": datetime.now(UTC).date().isoformat(),
                "seed": None,
                "versions": {
                    "python": platform.python_version(),
                    **{name: version(name) for name in PACKAGES},
                },
                "machine": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores; see docs/codec.md",
                "seconds": round(found.get("seconds", 0) + seconds, 1),
                "values": {**found.get("values", {}), item: values},
            },
            indent=1,
            ensure_ascii=False,
        )
        + "\n"
    )


def commit() -> str | None:
    """What the working tree stands at; None where git or its folder is not there."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


if __name__ == "__main__":
    main()
