"""Forked copies of the test process, so that a kill costs no new start of Python."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from livt_hf.training.lock import lock_folder


def forked(run: Callable[[], int | None], log: Path | None = None) -> int:
    """Process id of a child that calls ``run`` and exits with the status it returns; ``log`` gets its output."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False, buffering=1) for number in (1, 2))
            status = run() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return child


def exit_status(child: int) -> int:
    """As of `os.waitstatus_to_exitcode`: negative after a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def locked_by_another(folder: Path, inherited: bool = False) -> Iterator[int]:
    """A child that has locked a folder until it is killed.

    Args:
        inherited: the child has one of its own, as it would have a loader's worker, which outlives it.

    Yields:
        Its process id, once it has the lock.
    """
    ready, write = os.pipe()
    wait, keep = os.pipe()

    def hold() -> None:
        os.close(keep)
        with lock_folder(folder):
            worker = os.fork() if inherited else None
            os.write(write, b"1")
            if worker != 0:
                os.close(write)
            os.read(wait, 1)  # until the test closes its end
            if worker == 0:
                os._exit(0)

    child = forked(hold)
    os.close(write)
    assert os.read(ready, 1) == b"1"
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(child, 0)
        for descriptor in (ready, wait, keep):
            os.close(descriptor)
