"""The kernels of a program that runs on a GPU, and how long each takes, from JAX's profiler."""

import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Rows of a table that are kept.
KEPT = 60


def kernels(run: Callable[[int], object], steps: int) -> dict[str, Any]:
    """Per step: milliseconds in which the device was busy, and from its first kernel to its last; launches; the kernels that
    take longest, each with the program's instruction that it belongs to, its milliseconds and its launches.

    Args:
      run: `run(n)` does n steps and returns when the device has done them; it has run before.
      steps: how many are recorded.
    """
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(steps)
        file = next(Path(folder).rglob("*.xplane.pb"))
        planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    lines = [line for plane in planes if "GPU" in plane.name for line in plane.lines]
    events = [event for line in lines if line.name.startswith("Stream") for event in line.events]
    if not events:
        seen = [f"{plane.name}: {line.name}" for plane in planes for line in plane.lines]
        return {"error": f"no kernels were recorded, but {', '.join(seen)}"[:500]}
    taken: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in events:
        kernel = taken[f"{dict(event.stats).get('hlo_op', '')} {event.name}".strip()]
        kernel[0] += event.duration_ns
        kernel[1] += 1
    spans = sorted((event.start_ns, event.start_ns + event.duration_ns) for event in events)
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    longest = sorted(taken.items(), key=lambda row: -row[1][0])[:KEPT]
    return {
        "busy ms": busy / 1e6 / steps,
        "ms": (end - spans[0][0]) / 1e6 / steps,
        "launches": len(events) / steps,
        "kernels": [
            {"name": name, "ms": total / 1e6 / steps, "launches": times / steps}
            for name, (total, times) in longest
        ],
    }
