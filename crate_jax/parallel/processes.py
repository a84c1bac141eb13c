"""One program on many hosts: who takes part, who speaks and writes, and how it ends.

Every host runs the same command. They find one another by what the cluster tells each of them (TPU pod, GKE, Slurm, Open
MPI, whatever `jax.distributed` knows) or by `--coordinator=HOST:PORT --num_processes=N --process_id=I`, for which the
variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID may stand.
"""

import dataclasses
import os
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils

from crate_jax import InputError
from crate_jax.settings import convert, setting, settings_of

# Flag of a command → variable that stands for it.
VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
# A host that is silent for so long is dead, and the others end. jax's 100 s are more than a queue's patience.
HEARTBEAT_SECONDS = 30
# How long a host that is done waits for one that still draws pictures.
FAREWELL_SECONDS = 3600
# Bytes of a text that the processes agree on.
LONGEST_TEXT = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobFlags:
    """How the processes of a job find one another, where no cluster tells them."""

    coordinator: str | None = setting(
        None, "Of several processes: HOST:PORT of process 0. Only where no cluster tells them of one another."
    )
    num_processes: int | None = setting(None, "How many processes run this command.", least=1)
    process_id: int | None = setting(None, "Which of them this is, counted from 0.", least=0)


def join(flags: JobFlags) -> None:
    """Join the other processes of the job, if there are any; before anything touches a device.

    Args:
      flags: the command's; where one is None, its variable in VARIABLES counts.
    Raises:
      InputError: flags that are incomplete or contradict one another, or processes that cannot be reached.
    """
    options = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS, "shutdown_timeout_seconds": FAREWELL_SECONDS}
    given = _given(flags)
    if any(value is not None for value in given.values()):
        options |= _explicit(**given)
    try:
        jax.distributed.initialize(**options)
    except ValueError as error:
        # jax has no public way to ask whether it recognises a cluster.
        if "coordinator_address should be defined" not in str(error):
            raise
        # No cluster: a machine on its own.
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"could not join the other processes: {str(error).splitlines()[0]}") from None


def _given(flags: JobFlags) -> dict:
    """The flags, with the variables that stand for those that are missing."""
    given = dataclasses.asdict(flags)
    for name, variable in VARIABLES.items():
        if given[name] is None and (text := os.environ.get(variable)):
            hint = JobFlags.__annotations__[name]
            given[name] = convert(variable, text, hint, settings_of(JobFlags)[name])
    return given


def _explicit(coordinator: str | None, num_processes: int | None, process_id: int | None) -> dict:
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
    return {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
        "cluster_detection_method": "deactivate",
    }


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
