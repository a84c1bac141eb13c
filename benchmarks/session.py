"""Two workers, ours and the peers', and what they measured, written to a file after every answer."""

import datetime
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks import timing
from benchmarks.workloads import VARIANTS, WORKLOADS, tiny

ROOT = Path(__file__).parents[1]


class Worker:
    """A process that answers one request at a time; `send` and `receive` apart, so that two can work at once."""

    def __init__(self, side: str, log: Path):
        self.side = side
        memory = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "3"}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", side],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("a"), text=True, cwd=ROOT,
            env={**memory, **os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        self.answers: queue.Queue = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.answers.put(json.loads(line))
        self.answers.put({"failed": {"error": "the process ended"}})

    def send(self, **request: Any) -> None:
        """Ask; the answer comes by `receive`."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError:
            self.answers.put({"failed": {"error": "the process ended"}})

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next answer; after `timeout` seconds the process is ended."""
        try:
            return self.answers.get(timeout=max(timeout, 1))
        except queue.Empty:
            self.close()
            return {"failed": {"error": f"no answer within {timeout:.0f} s"}}

    def ask(self, timeout: float, **request: Any) -> dict[str, Any]:
        """`send` and `receive`."""
        self.send(**request)
        return self.receive(timeout)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


class Session:
    """A run of the benchmarks.

    Args:
      output: the JSON file; beside it a log of what the processes print.
      budget: seconds after which nothing new is begun.
      peer: a checkout of the released CRATE, or None.
      small: the sizes of a rehearsal.
      look_inside: keep the compiled programs of ours, in an archive beside the output, and the times of their kernels.
    """

    def __init__(
        self,
        output: Path,
        *,
        budget: float,
        peer: str | None,
        small: bool,
        repeats: int,
        steps: int,
        look_inside: bool = False,
    ):
        self.output, self.peer, self.small, self.look_inside = output, peer, small, look_inside
        self.end = time.monotonic() + budget
        self.repeats, self.steps = (2, 2) if small else (repeats, steps)
        self.log = output.with_suffix(".log")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, Any] = {"date": datetime.datetime.now(datetime.UTC).isoformat(), "results": {}}
        self.ours, self.peers = Worker("ours", self.log), Worker("peers", self.log)
        self.shapes: dict[str, dict] = {}
        # Fields of the model that all of ours has.
        self.fields: dict[str, Any] = {}

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self.end - time.monotonic()

    def note(self, name: str, value: Any) -> None:
        """Keep a result, on disk at once."""
        self.found["results"][name] = value
        self.found["seconds_left"] = round(self.left)
        temporary = self.output.with_suffix(".part")
        temporary.write_text(json.dumps(self.found, indent=1) + "\n")
        temporary.replace(self.output)
        print(f"[{self.left:5.0f} s left] {name}: {_short(value)}", flush=True)

    def start(self) -> None:
        """Device, versions, ceilings."""
        for worker in (self.ours, self.peers):
            worker.send(do="machine")
        self.found["machine"] = {w.side: w.receive(min(self.left, 180)) for w in (self.ours, self.peers)}
        self.found["ceilings"] = self.ours.ask(min(self.left, 120), do="ceilings", tiny=self.small)
        self.note("ceilings", self.found["ceilings"])

    def prepare(self, jobs: list[tuple[str, str]]) -> dict[str, float]:
        """Compile (workload, variant or peer) pairs on both sides at once. Returns the names that are ready."""
        ours, peers = {}, {}
        for workload, form in jobs:
            request = {"workload": workload, "tiny": self.small}
            if form in VARIANTS:
                ours[f"{workload}/{form}"] = {**request, "fields": {**VARIANTS[form], **self.fields}}
                continue
            if workload not in self.shapes:
                self.shapes[workload] = self.ours.ask(min(self.left, 120), do="shape", **request)
            peers[f"{workload}/{form}"] = {**request, "peer": form, "shape": self.shapes[workload]}
        self.ours.send(do="prepare", jobs=ours)
        self.peers.send(do="prepare", jobs=peers, path=self.peer)
        answers = {**self.ours.receive(self.left), **self.peers.receive(self.left)}
        for name, answer in answers.items():
            if isinstance(answer, dict):
                self.note(name, answer)
        return {name: answer for name, answer in answers.items() if not isinstance(answer, dict)}

    def measure(self, workload: str, names: dict[str, float], forms: list[str], *, turns: int = 2) -> None:
        """Measure the forms of a workload in turn, each `turns` times, and note medians, rates and ratios."""
        described = tiny(WORKLOADS[workload]) if self.small else WORKLOADS[workload]
        ready = [form for form in forms if f"{workload}/{form}" in names]
        answers: dict[str, list[dict]] = {form: [] for form in ready}
        for _ in range(turns):
            for form in ready:
                if self.left < 5:
                    break
                worker = self.ours if form in VARIANTS else self.peers
                repeats = max(1, self.repeats // turns)
                request = {
                    "do": "measure",
                    "name": f"{workload}/{form}",
                    "steps": self.steps,
                    "repeats": repeats,
                }
                answers[form].append(worker.ask(min(self.left, 120), **request))
        for form in ready:
            self.note(
                f"{workload}/{form}", self._result(described, answers[form], names[f"{workload}/{form}"])
            )
        for form in ready if self.look_inside else ():
            if form in VARIANTS and self.left > 20:
                self._look_inside(f"{workload}/{form}")
        for form in ready:
            (self.ours if form in VARIANTS else self.peers).ask(30, do="drop", name=f"{workload}/{form}")
        self._ratios(workload, ready)

    def _look_inside(self, name: str) -> None:
        archive = self.output.with_suffix(".zip").resolve()
        self.ours.ask(30, do="program", name=name, archive=str(archive))
        self.note(f"{name}, kernels", self.ours.ask(min(self.left, 60), do="profile", name=name))

    def _result(self, workload, answers: list[dict], compiled: float) -> dict[str, Any]:
        failed = next((answer["failed"] for answer in answers if "failed" in answer), None)
        if failed or not answers:
            return failed or {"error": "no time was left"}
        found = {key: value for key, value in answers[-1].items() if key != "seconds"}
        taken = [second for answer in answers for second in answer["seconds"]]
        step = timing.summary(taken)
        count = workload.batch * found.get("tokens", workload.per_example)
        found |= {
            "all_seconds": taken,
            "ms": 1e3 * step["median"],
            "spread": (step["max"] - step["min"]) / step["median"],
            f"{workload.unit}_per_second": count / step["median"],
            "prepared_in": compiled,
        }
        reachable = self.found.get("ceilings", {})
        if "matmul_flops" in found and "matmul_flops" in reachable:
            found["matmul_share"] = found["matmul_flops"] / step["median"] / reachable["matmul_flops"]
            found["copy_share"] = found["moved_bytes"] / step["median"] / reachable["copy_bytes"]
        return found

    def _ratios(self, workload: str, forms: list[str]) -> None:
        results = {form: self.found["results"].get(f"{workload}/{form}", {}) for form in forms}
        unit = f"{WORKLOADS[workload].unit}_per_second"
        for peer in [form for form in forms if form not in VARIANTS and unit in results[form]]:
            for form in [form for form in forms if form in VARIANTS and unit in results[form]]:
                mine, other = results[form], results[peer]
                # A peer may be timed over fewer tokens: seconds of one unit are what compares.
                times = [[t / r[unit] / (r["ms"] / 1e3) for t in r["all_seconds"]] for r in (mine, other)]
                self.note(f"{workload}: {form} over {peer}", timing.ratio(*times))

    def close(self) -> None:
        """End both processes."""
        self.ours.close()
        self.peers.close()


def _short(value: Any) -> str:
    if isinstance(value, dict):
        shown = {k: v for k, v in value.items() if isinstance(v, int | float | str) and k != "n"}
        return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
    return str(value)
