"""One program on many hosts: who takes part, who speaks and writes, and how it ends.

Every host runs the same command. They find one another by what the cluster tells each of them (TPU pod, GKE, Slurm, Open
MPI, whatever `jax.distributed` knows) or by `--coordinator=HOST:PORT --num_processes=N --process_id=I`, for which the
variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID may stand.
"""

import dataclasses
import hashlib
import importlib.metadata
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import clusters
from jax.experimental import multihost_utils

from crate_jax import InputError
from crate_jax.parallel.channel import PARTING_SECONDS, Channel, Place, Refused
from crate_jax.settings import convert, setting, settings_of

# Flag of a command → variable that stands for it.
VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
# How long a host that is done waits for one that still draws pictures.
FAREWELL_SECONDS = 3600
# Bytes of a text that the processes agree on.
LONGEST_TEXT = 500
# What must be of one version on all processes, beside this code itself.
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_channel: Channel | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobFlags:
    """How the processes of a job find one another, where no cluster tells them."""

    coordinator: str | None = setting(
        None, "Of several processes: HOST:PORT of process 0. Only where no cluster tells them of one another."
    )
    num_processes: int | None = setting(None, "How many processes run this command.", least=1)
    process_id: int | None = setting(None, "Which of them this is, counted from 0.", least=0)
    join_seconds: float = setting(
        300.0, "How long a process waits for the others to come, in seconds.", above=0
    )


def join(flags: JobFlags) -> None:
    """Join the other processes of the job, if there are any; before anything touches a device.

    Args:
      flags: the command's; where one is None, its variable in VARIABLES counts.
    Raises:
      InputError: flags that are incomplete or contradict one another, a port that is not free, processes that do not come
        within `join_seconds`.
      Refused: on all processes, where they differ in their number or their code, or two have one number.
    """
    global _channel
    given = _given(flags)
    place, devices = (
        _of_cluster() if all(value is None for value in given.values()) else (_explicit(**given), None)
    )
    if place is None:
        return  # A machine on its own.
    if place.count > 1:
        _channel = Channel(place, flags.join_seconds, _end)
        agree(_program())
    try:
        jax.distributed.initialize(
            place.address,
            place.count,
            place.process,
            local_device_ids=devices,
            cluster_detection_method="deactivate",
            shutdown_timeout_seconds=FAREWELL_SECONDS,
        )
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"could not join the other processes: {str(error).splitlines()[0]}") from None


def agree(values: Mapping[str, Any]) -> None:
    """Hold all processes to the same values; all call it, at the same place of the program. One on its own agrees.

    Args:
      values: by name; whatever JSON holds, and groups and lists of it.
    Raises:
      Refused: on all processes, naming the first value that differs.
    """
    if _channel is None:
        return
    rows = [dict(_flat(row)) for row in _channel.exchange(dict(values))]
    for process, row in enumerate(rows):
        for name in rows[0] | row:
            ours, theirs = rows[0].get(name), row.get(name)
            if ours != theirs:
                found = f"found {ours!r} on process 0, {theirs!r} on process {process}"
                raise Refused(f"{name}: {found}; accepted: the same on all processes")


def _flat(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _flat(value, f"{name}.{key}" if name else key)
    elif isinstance(values, list):
        for i, value in enumerate(values):
            yield from _flat(value, f"{name}[{i}]")
    else:
        yield name, values


def _program() -> dict[str, Any]:
    """What runs: the command, this code, the libraries, and what is said of platforms and types."""
    package = Path(__file__).parents[1]
    code = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        code.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return {
        "the command": Path(sys.argv[0]).stem,
        "the code of crate_jax": code.hexdigest()[:12],
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "JAX_PLATFORMS": jax.config.jax_platforms,
        "JAX_ENABLE_X64": jax.config.jax_enable_x64,
    }


def _of_cluster() -> tuple[Place | None, Sequence[int] | None]:
    """The place that the cluster tells this process, and its devices; None where there is no cluster.

    jax has no public way to ask what it recognises.
    """
    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 300)
    address, count, process, devices = found
    if address is None or count is None or process is None:
        return None, None
    return Place(address, count, process), None if os.environ.get("JAX_LOCAL_DEVICE_IDS") else devices


def _given(flags: JobFlags) -> dict:
    """The flags, with the variables that stand for those that are missing."""
    given = {name: getattr(flags, name) for name in VARIABLES}
    for name, variable in VARIABLES.items():
        if given[name] is None and (text := os.environ.get(variable)):
            hint = JobFlags.__annotations__[name]
            given[name] = convert(variable, text, hint, settings_of(JobFlags)[name])
    return given


def _explicit(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Place:
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if coordinator is None or num_processes is None or process_id is None:
        raise InputError(
            f"several processes: {', '.join(missing)} missing; give all of {', '.join(VARIABLES)}, or none"
        )
    if process_id >= num_processes:
        raise InputError(
            f"--process_id: found {process_id}; accepted: 0 to {num_processes - 1}, below --num_processes"
        )
    address, _, port = coordinator.rpartition(":")
    if not address or not port.isdigit():
        raise InputError(f"--coordinator: found {coordinator!r}; accepted: HOST:PORT of process 0")
    return Place(coordinator, num_processes, process_id)


def several() -> bool:
    """Whether this process is one of several; never touches a device."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes files."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def who() -> str:
    """`process 1 of 4`, counted from 0."""
    return f"process {jax.process_index()} of {jax.process_count()}"


def wait(where: str) -> None:
    """Wait until every process is here."""
    if several():
        multihost_utils.sync_global_devices(where)


def of_first(value: int) -> int:
    """The number that process 0 has."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if several() else value


def first_of_all(text: str | None) -> str | None:
    """Of what the processes have to say, what the first of them says that says anything; the same on all."""
    if not several():
        return text
    padded = (text or "").encode()[:LONGEST_TEXT].ljust(LONGEST_TEXT)
    rows = np.asarray(multihost_utils.process_allgather(np.frombuffer(padded, np.uint8)))
    said = [row.tobytes().decode(errors="replace").strip() for row in rows]
    return next((one for one in said if one), None)


def leave() -> None:
    """Wait until all others are done too, and part from them: nobody ends while another may still need it."""
    jax.distributed.shutdown()
    if _channel is not None:
        _channel.close()


def fail(line: str, code: int) -> NoReturn:
    """End this process with a line on stderr, and all others of the job with the same one."""
    if _channel is not None and not _channel.tell(line, code):
        time.sleep(2 * PARTING_SECONDS)  # Another one has failed before, and is about to end this one.
    _end(line, code)


def hear_why() -> None:
    """Wait for the word of another process that has failed, which ends this one; return where none comes."""
    if _channel is not None:
        time.sleep(2 * PARTING_SECONDS)


def _end(line: str, code: int) -> NoReturn:
    print(f"error: {line}", file=sys.stderr, flush=True)
    # Daemon threads of data workers or of a half-finished save must not keep a failed command alive; nor may the barrier
    # at jax's exit.
    sys.stdout.flush()
    os._exit(code)


class StopSignals:
    """SIGTERM, Ctrl-C and SIGHUP (a terminal that is gone) as a wish to stop, agreed on by all processes. Use as a context
    manager around the steps.

    On one process a signal counts at once, and a second one ends the process. On several the signal of one of them is
    passed on by jax's coordinator, which chooses a step that none has reached yet; all stop at that one.
    """

    def __enter__(self):
        self._requested = False
        if jax.distributed.is_initialized():
            # SIGTERM belongs to the coordinator's notifier; Ctrl-C is made to mean the same.
            handlers = {signal.SIGINT: self._forward, signal.SIGHUP: self._forward}
        else:
            handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self._request)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            del handlers[signal.SIGHUP]  # nohup: the run is to outlive its terminal.
        self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop_after(self, step: int) -> bool:
        """Whether to stop after this step; to be asked at every step, by all processes."""
        if jax.distributed.is_initialized():
            self._requested |= multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def _request(self, number, frame) -> None:
        del number, frame
        self._requested = True
        # A second signal ends the process at once.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _forward(self, number, frame) -> None:
        del number, frame
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGTERM)
