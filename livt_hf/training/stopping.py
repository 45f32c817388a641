"""Stopping a run: signals that ask for it, and ends that nobody asked for, in one line that says what is saved.

The first SIGTERM or SIGUSR1 asks the training loop to save and stop after its step, or an evaluation to stop after its
batch. A thread answers at once and ends the process if that takes too long, or at a second signal: Python runs signal
handlers only between bytecodes, so a loop that waits for a device or a compiler would not notice them.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ..data.worker_failure import WORKER_FAILED, is_worker_failure

STEP_SECONDS = 30.0  # how long a step may take after a signal
BATCH_SECONDS = 10.0  # the same of a batch of an evaluation
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """A signal stopped an evaluation."""


class StopSignal:
    """Context in which SIGTERM and SIGUSR1 ask to stop.

    Args:
        saved: says what is saved and what the same command does now, for the message of a forced end.
        at_once: the first signal ends the process: nothing is lost that the same command would not make again.

    Attributes:
        received: name of the signal that asked to stop, if any.
    """

    def __init__(self, saved: Callable[[], str] = str, at_once: bool = False):
        self.saved, self.at_once = saved, at_once
        self.received: str | None = None
        self._what, self._seconds = "the current step", STEP_SECONDS
        self._busy_since = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        self._pipe, self._signals = os.pipe()
        os.set_blocking(self._signals, False)
        self._previous_fd = signal.set_wakeup_fd(self._signals, warn_on_full_buffer=False)
        _woken.add(self._signals)
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="stop signal")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        _woken.discard(self._signals)
        os.write(self._signals, b"\0")  # no signal has this number: the thread ends
        self._thread.join()
        os.close(self._signals)
        os.close(self._pipe)

    def step_ended(self) -> None:
        """The loop is alive: the time of its next step begins."""
        self._busy_since = time.monotonic()

    def saving(self) -> None:
        """The loop has noticed the signal; saving may take as long as it takes."""
        self._busy_since = math.inf

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Context of an evaluation: a batch has less time than a step."""
        before = self._what, self._seconds
        self._what, self._seconds = "the current batch of the evaluation", BATCH_SECONDS
        self.step_ended()
        try:
            yield
        finally:
            self._what, self._seconds = before
            self.step_ended()

    def check(self) -> None:
        """Between two batches of an evaluation: raise `Stopped` if a signal has arrived."""
        if self.received:
            raise Stopped(self.received)
        self.step_ended()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    def _watch(self) -> None:
        """In a thread: read the numbers of the signals that arrive, and measure the time after the first."""
        asked, since = 0, math.inf
        while True:
            if select.select([self._pipe], [], [], 0.1 if asked else None)[0]:
                for number in os.read(self._pipe, 64):
                    if number == 0:
                        return
                    if number not in SIGNALS:  # such as SIGCHLD
                        continue
                    if asked or self.at_once:
                        self._end(number, "")
                    asked, since = number, time.monotonic()
                    logger.info(
                        f"{signal.Signals(asked).name}: stopping after {self._what}; a second signal, or "
                        f"{self._seconds:g} seconds, ends at once"
                    )
            if asked and time.monotonic() > max(since, self._busy_since) + self._seconds:
                self._end(asked, f" because {self._what} took more than {self._seconds:g} seconds")

    def _end(self, number: int, why: str) -> None:
        """End the process and its loaders' workers at once; every file is written so that this damages nothing."""
        saved = ""
        with suppress(Exception):  # whatever the folder contains, the process must end
            saved = f"; {self.saved()}"
        flush = threading.Thread(target=sys.stdout.flush, daemon=True)
        flush.start()
        flush.join(1)  # a terminal that takes nothing must not keep the process
        os.write(2, f"\n{signal.Signals(number).name}: ended at once{why}{saved}\n".encode())
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(128 + number)


class StoppableBatches:
    """The batches of an evaluation, which `StopSignal.check` may stop before each of them."""

    def __init__(self, batches: Any, signal: StopSignal):
        self.batches, self.signal = batches, signal

    def __len__(self) -> int:  # for a progress bar
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        self.signal.check()
        for batch in self.batches:
            yield batch
            self.signal.check()


_woken: set[int] = set()  # descriptors that signals are written to


def _forget_in_child() -> None:
    """A signal to a loader's worker is not one to the run, whose descriptor it inherits."""
    if _woken:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_in_child)


@contextmanager
def explained_end(saved: Callable[[], str]) -> Iterator[None]:
    """Say what is saved if Ctrl-C, or the death of a loader's worker, ends a run.

    Raises:
        ValueError: a worker died.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(saved()) from None
    except RuntimeError as error:
        if not is_worker_failure(error):
            raise
        raise ValueError(f"{WORKER_FAILED}; {saved()}") from None
