"""One side of a comparison in a process of its own: jobs come in as lines of JSON, answers go out the same way.

    python -m benchmarks.worker ours|peers

Two frameworks in one process disturb each other's memory, so each has its own, and `benchmarks.run` lets them measure in
turn.
"""

import contextlib
import dataclasses
import json
import os
import sys
import traceback
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.workloads import WORKLOADS, Workload, tiny

# Programs that compile at once; each keeps about one core busy.
COMPILERS = 8


def workload(request: dict[str, Any]) -> Workload:
    """The workload that a request names, at the size it asks for."""
    found = WORKLOADS[request["workload"]]
    if request.get("tiny"):
        found = tiny(found)
    return dataclasses.replace(found, batch=request["batch"]) if request.get("batch") else found


class Ours:
    """Answers for this package."""

    def __init__(self):
        self.ready: dict[str, Any] = {}

    def machine(self, request: dict) -> dict:
        """What this runs on."""
        import jax
        import jaxlib

        device = jax.devices()[0]
        return {
            "device": device.device_kind,
            "platform": device.platform,
            "cores": os.cpu_count(),
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "python": sys.version.split()[0],
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
        }

    def shape(self, request: dict) -> dict:
        """The fields of our model's configuration, for the peer to follow."""
        from benchmarks import ours

        config = ours.make_run(workload(request), {})[0].config.model
        return {**dataclasses.asdict(config), "head_dim": config.head_dim}

    def prepare(self, request: dict) -> dict:
        """Lower one after the other, compile together. Name → seconds of compiling, or what went wrong."""
        from benchmarks import ours

        lowered, answer = {}, {}
        for name, job in request["jobs"].items():
            with _caught(answer, name):
                lowered[name] = ours.make(workload(job), job.get("fields", {}))
        with ThreadPoolExecutor(COMPILERS) as pool:
            started = {name: pool.submit(one.compile) for name, one in lowered.items()}
            for name, future in started.items():
                with _caught(answer, name):
                    answer[name] = future.result()
                    self.ready[name] = lowered[name]
        return answer

    def measure(self, request: dict) -> dict:
        """See `ours.Training.measure`."""
        return self.ready[request["name"]].measure(steps=request["steps"], repeats=request["repeats"])

    def profile(self, request: dict) -> dict:
        """See `profiling.kernels`; of what was measured before."""
        return self.ready[request["name"]].profile()

    def program(self, request: dict) -> dict:
        """Add the compiled program, as XLA prints it, to an archive."""
        with zipfile.ZipFile(request["archive"], "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(
                f"{request['name'].replace('/', '-')}.txt", self.ready[request["name"]].step.as_text()
            )
        return {}

    def drop(self, request: dict) -> dict:
        """Forget what was prepared."""
        self.ready.pop(request["name"], None)
        return {}

    def ceilings(self, request: dict) -> dict:
        """See `timing.ceilings`."""
        from benchmarks import timing

        return timing.ceilings(small=request.get("tiny", False))

    def check(self, request: dict) -> dict:
        """One of `checks.CHECKS`."""
        from benchmarks import checks

        return checks.CHECKS[request["name"]](small=request.get("tiny", False))


class Peers:
    """Answers for the others."""

    def __init__(self):
        self.ready: dict[str, Any] = {}

    def machine(self, request: dict) -> dict:
        """What this runs on."""
        import importlib.metadata

        import torch

        found = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}
        for name in ("torch", "timm", "transformers"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
        return found

    def prepare(self, request: dict) -> dict:
        """Make and compile. Name → seconds, or what went wrong."""
        from benchmarks import peers

        answer = {}
        for name, job in request["jobs"].items():
            with _caught(answer, name):
                self.ready[name] = peers.make(workload(job), job["peer"], job["shape"], request.get("path"))
                answer[name] = self.ready[name].compile()
        return answer

    measure, drop = Ours.measure, Ours.drop

    def check(self, request: dict) -> dict:
        """One of `torch_checks.CHECKS`."""
        from benchmarks import torch_checks

        return torch_checks.CHECKS[request["name"]](small=request.get("tiny", False))


@contextlib.contextmanager
def _caught(answer: dict, name: str):
    """An error is the answer to this job and no reason to lose the others."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        answer[name] = {"error": f"{type(error).__name__}: {error}"[:500]}


def main(side: str) -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What libraries print is no answer.
    worker = {"ours": Ours, "peers": Peers}[side]()
    for line in sys.stdin:
        request, answer = json.loads(line), {}
        with _caught(answer, "failed"):
            answer = getattr(worker, request["do"])(request)
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
