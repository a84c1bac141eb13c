"""One run at a time in a workdir: process 0 holds a lock of the kernel, which ends with the process however that ends."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from rich.text import Text

from crate_jax import InputError
from crate_jax.parallel import processes
from crate_jax.runs.console import console

# Its lock counts, not that it exists; it says who the owner is.
FILE = "owner.lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_held: set[int] = set()


@contextlib.contextmanager
def owned(workdir: Path) -> Iterator[None]:
    """Hold the folder of a run, which is made if it is not there; all processes of the run call this.

    Raises:
      InputError: another process holds it, on all processes of this run.
    """
    held, problem = None, None
    if processes.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        held, problem = _lock(workdir)
    problem = processes.first_of_all(problem)
    if problem is not None:
        raise InputError(problem)
    try:
        yield
    finally:
        if held is not None:
            _held.discard(held)
            os.close(held)


def _lock(workdir: Path) -> tuple[int | None, str | None]:
    """The locked file, or why there is none."""
    file = os.open(workdir / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(file, 300).decode("utf-8", errors="replace").strip() or "another process"
        os.close(file)
        return (
            None,
            f"--workdir: {owner} trains in {workdir}; accepted: another folder, or wait until it has ended",
        )
    except OSError as error:
        os.close(file)
        if error.errno not in NO_LOCKS:
            raise
        console.print(
            Text(
                f"{workdir}: no locks on this file system; see to it that no second run starts in this folder"
            )
        )
        return None, None
    os.ftruncate(file, 0)
    os.write(file, f"{socket.gethostname()}, PID {os.getpid()}\n".encode())
    _held.add(file)
    return file, None


def _forget() -> None:
    """In a forked child: a worker that outlives its run must not hold the run's folder."""
    for file in _held:
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
