"""Process all images of a dataset in several processes, with a progress bar."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from ...reporting.provenance import available_cores
from ..table import Rows


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a split; ``number`` is the index of the chunk within the split."""

    split: str
    number: int
    rows: range


def split_into_chunks(rows_of: dict[str, Rows], size: int) -> list[Chunk]:
    """All rows of all splits in chunks of up to ``size`` rows."""
    return [
        Chunk(split, start // size, range(start, min(start + size, len(rows))))
        for split, rows in rows_of.items()
        for start in range(0, len(rows), size)
    ]


def map_chunks(
    work: Callable[[Rows, Chunk], Any],
    rows_of: dict[str, Rows],
    chunks: list[Chunk],
    num_workers: int | None,
    description: str,
) -> Iterator[tuple[Chunk, Any]]:
    """Yield (chunk, ``work(rows of its split, chunk)``) for each chunk, in any order.

    Args:
        work: a picklable function.
        num_workers: number of processes; None uses one per core, 0 runs in this process.
        description: label of the progress bar.
    """
    if num_workers is None:
        num_workers = available_cores()
    with tqdm(total=sum(len(chunk.rows) for chunk in chunks), desc=description, unit=" images") as progress:
        if num_workers == 0:
            for chunk in chunks:
                yield chunk, work(rows_of[chunk.split], chunk)
                progress.update(len(chunk.rows))
            return
        with ProcessPoolExecutor(num_workers, initializer=_start_worker, initargs=(rows_of,)) as pool:
            waiting = iter(chunks)
            running: dict[Future, Chunk] = {}
            try:
                while True:
                    for chunk in itertools.islice(waiting, 2 * num_workers - len(running)):
                        running[pool.submit(_work_in_worker, work, chunk)] = chunk
                    if not running:
                        return
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        chunk = running.pop(done)
                        yield chunk, done.result()
                        progress.update(len(chunk.rows))
            finally:
                pool.shutdown(cancel_futures=True)


_rows_of: dict[str, Rows] = {}


def _start_worker(rows_of: dict[str, Rows]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal interrupts all processes; the first one ends the others
    torch.set_num_threads(1)
    _rows_of.update(rows_of)


def _work_in_worker(work: Callable[[Rows, Chunk], Any], chunk: Chunk) -> Any:
    return work(_rows_of[chunk.split], chunk)
