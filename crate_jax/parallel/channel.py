"""A line between the processes of a job, beside jax's: who came, what they compare, and how each of them ends.

Process 0 listens at HOST:PORT until all have come; then it leaves the port to jax's coordinator and keeps the connections.
Over these every process tells the others why it fails, and a process that is killed, or stopped, is missed at once or after
SILENT_SECONDS. Messages are JSON, one a line. Standard library only: jax answers the same cases by ending the process.
"""

import contextlib
import dataclasses
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from crate_jax import InputError

# Longer than any pause of a process that works: threads answer while it computes.
SILENT_SECONDS = 40
PING_SECONDS = 5
# How long a process that waits for others says nothing about it, and how long it waits for an answer to its greeting.
QUIET_SECONDS, ANSWER_SECONDS = 15, 10
# How long a process that fails waits for the others to have heard it.
PARTING_SECONDS = 3
LONGEST_LINE = 2**20
FAILED, BAD_INPUT = 1, 2


class Refused(InputError):
    """Bad input that all processes of a job know of, in the same words."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A process of a job: where its process 0 is, how many there are, and which of them it is."""

    address: str
    count: int
    process: int

    @property
    def host(self) -> tuple[str, int]:
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)

    def __str__(self) -> str:
        return f"process {self.process} of {self.count}"


class Peer:
    """Another process, at the other end of a connection."""

    def __init__(self, connection: socket.socket):
        self._connection, self._lines = connection, connection.makefile("rb")
        self._lock = threading.Lock()
        self.values: queue.Queue = queue.Queue()
        self.about: dict[str, Any] = {}

    def __str__(self) -> str:
        return "process {process} ({host}, PID {pid})".format_map(self.about)

    def send(self, kind: str, **values: Any) -> None:
        """One message; whether it is read shows later."""
        line = json.dumps({"kind": kind, **values}).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(line)

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """The next message; None where there is none, and will be none.

        Raises:
          TimeoutError: nothing for so long.
        """
        self._connection.settimeout(seconds)
        try:
            message = json.loads(self._lines.readline(LONGEST_LINE))
        except TimeoutError:
            raise
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) and "kind" in message else None

    def close(self) -> None:
        """Say no more; what the other still says is read to its end elsewhere."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)


class Channel:
    """The line to the others, once all have come. Process 0 is connected to all, each other one to process 0.

    Args:
      place: this process.
      seconds: how long to wait for the others.
      fail: `fail(line, code)` ends this process, for another one has failed; called from a thread of its own.
    Raises:
      InputError: the port is not free, nobody listens there, or not all have come.
      Refused: the processes that came are not those of one job.
    """

    def __init__(self, place: Place, seconds: float, fail: Callable[[str, int], None]):
        self._place, self._fail = place, fail
        self._ending = threading.Lock()  # Whoever holds it has the last word; it is never released.
        self._left = threading.Event()
        self._peers = _gather(place, seconds) if place.process == 0 else [_reach(place, seconds)]
        self._listeners = [
            threading.Thread(target=self._listen, args=(peer,), daemon=True) for peer in self._peers
        ]
        for thread in (*self._listeners, threading.Thread(target=self._ping, daemon=True)):
            thread.start()

    def exchange(self, value: Any) -> list[Any]:
        """What every process has given to this call, in their order; all call it, at the same place of the program."""
        if self._place.process:
            self._peers[0].send("value", value=value)
            return self._peers[0].values.get()
        found = [json.loads(json.dumps(value)), *(peer.values.get() for peer in self._peers)]
        for peer in self._peers:
            peer.send("value", value=found)
        return found

    def tell(self, line: str, code: int) -> bool:
        """Tell the others why this process is about to fail; False where another one has failed before and ends it."""
        if not self._ending.acquire(blocking=False):
            return False
        self._pass_on(line, code)
        return True

    def close(self) -> None:
        """Part from the others; nobody fails any more for what becomes of them."""
        self._left.set()
        for peer in self._peers:
            peer.send("bye")
        self._wait_for_listeners()

    def _listen(self, peer: Peer) -> None:
        try:
            while (message := peer.receive(SILENT_SECONDS)) is not None and message["kind"] != "bye":
                if message["kind"] == "value":
                    peer.values.put(message["value"])
                elif message["kind"] == "failed":
                    self._end(message["line"], message["code"])
            if message is None:
                self._end(f"{peer} has ended without a word; it was killed, or its host is gone", FAILED)
        except TimeoutError:
            reason = "it is stopped, or the network between the hosts is interrupted"
            self._end(f"{peer} has been silent for {SILENT_SECONDS} seconds; {reason}", FAILED)

    def _end(self, line: str, code: int) -> None:
        if not self._left.is_set() and self._ending.acquire(blocking=False):
            self._pass_on(line, code)
            self._fail(line, code)

    def _pass_on(self, line: str, code: int) -> None:
        for peer in self._peers:
            peer.send("failed", line=line, code=code)
            peer.close()
        self._wait_for_listeners()

    def _wait_for_listeners(self) -> None:
        """Until the others have closed their ends: a line that is not read yet would be lost with this process."""
        deadline = time.monotonic() + PARTING_SECONDS
        for thread in self._listeners:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _ping(self) -> None:
        while not self._left.wait(PING_SECONDS):
            for peer in self._peers:
                peer.send("ping")


def _gather(place: Place, seconds: float) -> list[Peer]:
    """Process 0: the others, in their order, when all have come."""
    came: dict[int, Peer] = {}
    deadline = time.monotonic() + seconds

    def missing() -> str:
        return ", ".join(str(i) for i in range(1, place.count) if i not in came)

    with _open(place) as listener:
        said = _Waiting(place, lambda: f"process {missing()} of {place.count}")
        while len(came) < place.count - 1:
            if time.monotonic() > deadline:
                here = ", ".join(["process 0 (this one)", *(str(came[i]) for i in sorted(came))])
                problem = (
                    f"waited {seconds:g} seconds at {place.address} for process {missing()} of {place.count}"
                )
                raise _refuse(came, f"{problem}; here: {here}")
            said.perhaps()
            listener.settimeout(1.0)
            with contextlib.suppress(TimeoutError):
                peer = Peer(listener.accept()[0])
                problem = _problem(place, peer, came)
                if problem is not None:
                    raise _refuse({**came, -1: peer}, problem)
                if peer.about:
                    came[peer.about["process"]] = peer
    for peer in came.values():
        peer.send("welcome", **_about(place))
    return [came[i] for i in range(1, place.count)]


def _problem(place: Place, peer: Peer, came: dict[int, Peer]) -> str | None:
    """What is wrong with a process that has come, in words; `peer.about` stays empty where it is none of a job."""
    hello = peer.receive(ANSWER_SECONDS)
    if hello is None or hello["kind"] != "hello":
        return None  # Whatever else knocks at ports.
    peer.about = hello
    if hello["count"] != place.count:
        return f"--num_processes: found {place.count} on process 0, {hello['count']} on {peer}; accepted: one number on all"
    if hello["process"] in came:
        return f"--process_id: {came[hello['process']]} and {peer} are the same; accepted: each number once"
    return None


def _refuse(came: dict[int, Peer], problem: str) -> Refused:
    for peer in came.values():
        peer.send("failed", line=problem, code=BAD_INPUT)
        peer.close()
    return Refused(problem)


def _open(place: Place) -> socket.socket:
    """The port, bound. Without SO_REUSEPORT, which jax's coordinator sets: two of them would share a port in silence."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", place.host[1]), family=family, dualstack_ipv6=both, backlog=128)
    except (OSError, OverflowError) as error:
        errno = getattr(error, "errno", None)
        reason = (os.strerror(errno) if errno else str(error)).lower()
    raise InputError(
        f"--coordinator: {place.address} cannot be opened on {socket.gethostname()} ({reason}); accepted: a port "
        "that is free there"
    )


def _reach(place: Place, seconds: float) -> Peer:
    """Another process: process 0, when all have come."""
    deadline = time.monotonic() + seconds
    said = _Waiting(place, lambda: "process 0")
    while True:
        try:
            peer = Peer(socket.create_connection(place.host, timeout=5))
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(
                    f"waited {seconds:g} seconds for process 0 at {place.address}, where nobody listens "
                    f"({(error.strerror or str(error)).lower()}); here: {place}"
                ) from None
        said.perhaps()
        time.sleep(0.3)
    peer.about = {"process": 0, "host": place.host[0], "pid": "unknown"}
    peer.send("hello", **_about(place))
    answer = None
    with contextlib.suppress(TimeoutError):
        answer = peer.receive(max(1.0, deadline - time.monotonic()) + ANSWER_SECONDS)
    if answer is None or answer["kind"] not in ("welcome", "failed"):
        raise InputError(
            f"--coordinator: what answers at {place.address} is no process 0 that waits for {place}; accepted: HOST:PORT of "
            "one"
        )
    if answer["kind"] == "failed":
        raise Refused(answer["line"])
    peer.about = answer
    return peer


def _about(place: Place) -> dict[str, Any]:
    return {"process": place.process, "count": place.count, "host": socket.gethostname(), "pid": os.getpid()}


class _Waiting:
    """Says on stderr for whom a process waits, once, when that takes long."""

    def __init__(self, place: Place, whom: Callable[[], str]):
        self._place, self._whom, self._when = place, whom, time.monotonic() + QUIET_SECONDS

    def perhaps(self) -> None:
        if time.monotonic() > self._when:
            self._when = float("inf")
            print(
                f"{self._place} waits for {self._whom()} at {self._place.address}",
                file=sys.stderr,
                flush=True,
            )
