"""Processes that do not come, come twice, differ, fail or fall silent: one line on all of them, and none of them hangs.

Here the processes are threads; tests/parallel/test_disagreement.py has real ones.
"""

import re
import socket
import threading
import time

import pytest
from conftest import TINY, load_config

from crate_jax import InputError
from crate_jax.parallel import channel, processes
from crate_jax.parallel.channel import BAD_INPUT, FAILED, Channel, Place, Refused
from crate_jax.runs import cli


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    for name, value in {
        "SILENT_SECONDS": 0.6,
        "PING_SECONDS": 0.1,
        "PARTING_SECONDS": 0.5,
        "ANSWER_SECONDS": 1,
    }.items():
        monkeypatch.setattr(channel, name, value)


@pytest.fixture
def address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Together:
    """Channels of a job, made at once; `found[i]` is one, or what it raised; `ends[i]` what it was ended with."""

    def __init__(self, *places: Place, seconds: float = 5):
        self.found = [None] * len(places)
        self.ends: list[list] = [[] for _ in places]

        def start(i: int, place: Place) -> None:
            try:
                self.found[i] = Channel(place, seconds, lambda line, code: self.ends[i].append((line, code)))
            except InputError as error:
                self.found[i] = error

        threads = [threading.Thread(target=start, args=(i, place)) for i, place in enumerate(places)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        threads = [threading.Thread(target=one.close) for one in self.found if isinstance(one, Channel)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def of(address: str, count: int) -> list[Place]:
    return [Place(address, count, process) for process in range(count)]


def eventually(holds) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_values_reach_everybody_in_order_and_a_parting_is_no_failure(address):
    job = Together(*of(address, 3))
    found = [None] * 3

    def give(i: int) -> None:
        found[i] = [job.found[i].exchange({"process": i}), job.found[i].exchange(i * i)]

    threads = [threading.Thread(target=give, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[[{"process": 0}, {"process": 1}, {"process": 2}], [0, 1, 4]]] * 3
    time.sleep(1.5 * channel.SILENT_SECONDS)  # Nobody says anything for a while.
    job.close()
    assert job.ends == [[], [], []]


def test_the_port_is_left_to_the_next_listener(address):
    """jax's coordinator takes it while the connections last."""
    job = Together(*of(address, 2))
    with socket.create_server(("", int(address.rpartition(":")[2]))):
        pass
    job.close()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failure_is_told_to_all(address, failing):
    job = Together(*of(address, 3))
    assert job.found[failing].tell("no such folder", BAD_INPUT)
    others = [ends for i, ends in enumerate(job.ends) if i != failing]
    eventually(lambda: others == [[("no such folder", BAD_INPUT)]] * 2)
    assert not job.found[(failing + 1) % 3].tell("the connection is gone", FAILED)  # It has heard why.
    assert job.ends[failing] == []


def test_a_process_that_is_killed(address):
    job = Together(*of(address, 3))
    channel.Peer.close(job.found[1]._peers[0])
    eventually(lambda: job.ends[0] and job.ends[2])
    assert job.ends[0] == job.ends[2]
    line, code = job.ends[0][0]
    assert re.fullmatch(
        r"process 1 \(.+, PID \d+\) has ended without a word; it was killed, or its host is gone", line
    )
    assert code == FAILED


def test_a_process_that_is_stopped(address, monkeypatch):
    job = Together(*of(address, 2))
    monkeypatch.setattr(job.found[1]._peers[0], "send", lambda kind, **values: None)
    eventually(lambda: job.ends[0])
    assert "process 1" in job.ends[0][0][0] and "has been silent for 0.6 seconds" in job.ends[0][0][0]
    eventually(lambda: job.ends[1] == job.ends[0])


def test_a_process_that_does_not_come(address):
    here, there = Together(Place(address, 3, 0), Place(address, 3, 2), seconds=1).found
    assert str(here) == str(there)
    pattern = rf"waited 1 seconds at {address} for process 1 of 3; here: process 0 \(this one\), process 2 \(.+, PID \d+\)"
    assert re.fullmatch(pattern, str(here))
    (alone,) = Together(Place(address, 2, 1), seconds=0.5).found
    pattern = (
        rf"waited 0.5 seconds for process 0 at {address}, where nobody listens \(.+\); here: process 1 of 2"
    )
    assert re.fullmatch(pattern, str(alone))


def test_a_process_that_waits_says_for_whom(address, monkeypatch, capsys):
    monkeypatch.setattr(channel, "QUIET_SECONDS", 0.2)
    Together(Place(address, 3, 0), seconds=2)
    Together(Place(address, 2, 1), seconds=1)
    assert capsys.readouterr().err.splitlines() == [
        f"process 0 of 3 waits for process 1, 2 of 3 at {address}",
        f"process 1 of 2 waits for process 0 at {address}",
    ]


def test_two_processes_of_one_number(address):
    found = Together(Place(address, 3, 0), Place(address, 3, 1), Place(address, 3, 1)).found
    assert len({str(error) for error in found}) == 1 and all(isinstance(error, Refused) for error in found)
    assert "are the same; accepted: each number once" in str(found[0])


def test_another_number_of_processes(address):
    found = Together(Place(address, 2, 0), Place(address, 3, 1)).found
    assert str(found[0]) == str(found[1])
    assert re.match(r"--num_processes: found 2 on process 0, 3 on process 1 \(.+, PID \d+\)", str(found[0]))


def test_a_port_in_use(address):
    with socket.create_server(("", int(address.rpartition(":")[2]))):
        (found,) = Together(Place(address, 2, 0)).found
    assert re.match(
        rf"--coordinator: {address} cannot be opened on .+ \(address already in use\)", str(found)
    )


def test_another_program_at_the_port(address):
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))) as listener:

        def answer():
            listener.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n")

        threading.Thread(target=answer).start()
        (found,) = Together(Place(address, 2, 1)).found
    assert f"what answers at {address} is no process 0 that waits for process 1 of 2" in str(found)


def test_other_programs_that_knock_are_not_counted(address):
    def knock():
        host, port = Place(address, 2, 0).host
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"17\n", b""):
            with socket.create_connection((host, port)) as connection:
                connection.sendall(data)

    job = []
    thread = threading.Thread(target=lambda: job.append(Together(Place(address, 2, 0))))
    thread.start()
    eventually(lambda: not _raises(knock))
    second = Together(Place(address, 2, 1))
    thread.join()
    assert isinstance(job[0].found[0], Channel) and isinstance(second.found[0], Channel)
    threading.Thread(target=job[0].close).start()
    second.close()


def _raises(function) -> bool:
    try:
        function()
    except OSError:
        return True
    return False


class Mirror:
    """A channel to a process that gave other values to each call."""

    def __init__(self, theirs: list):
        self.theirs = theirs

    def exchange(self, ours):
        return [ours, self.theirs.pop(0)]


CHANGES = {
    "seed": 1,
    "model.dim": 32,
    "data.name": "folder:elsewhere",
    "optimizer.lr": 1.0,
    "regularizer.penalty": 0.5,
    "simdino.local_views": 2,
    "mesh.data": 1,
    "total_steps": 7,
}


@pytest.mark.parametrize("key", CHANGES)
def test_any_setting_that_differs_is_named(key, monkeypatch):
    asked = []
    monkeypatch.setattr(processes, "agree", asked.append)
    flags = cli.ConfigFlags(config="configs/base.py")
    for config in (load_config(TINY), load_config({**TINY, key: CHANGES[key]})):
        cli._agree(flags, "runs/x", config, set())
    monkeypatch.undo()
    monkeypatch.setattr(processes, "_channel", Mirror([asked[1]]))
    with pytest.raises(
        Refused, match=rf"--config\.{key}: found .+ on process 0, .+ on process 1; accepted: the same"
    ):
        processes.agree(asked[0])
    monkeypatch.setattr(processes, "_channel", Mirror([asked[0]]))
    processes.agree(asked[0])


def test_code_and_versions_are_compared():
    found = processes._program()
    assert {"the command", "the code of crate_jax", "Python", "jax", "numpy"} <= found.keys()
    assert found == processes._program()
