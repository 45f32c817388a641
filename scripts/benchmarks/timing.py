"""Clocks: steps measured in turns, the memory of a step, and the peak of the device.

A GPU works on its own: the host only enqueues. There the time of a step lies between two events on the device, and the
time that the host takes to enqueue a step tells which of the two limits the speed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

Step = Callable[[], None]


@dataclass(frozen=True)
class Speed:
    """Seconds per step in each turn. ``host_ms``: milliseconds that the host needs to enqueue it; None on a CPU."""

    seconds: list[float]
    batch_size: int
    host_ms: float | None

    @property
    def images_per_second(self) -> float:
        """The median."""
        return self.batch_size / statistics.median(self.seconds)

    def ratio_to(self, other: Speed) -> float:
        """The median over turns, so that a change of the machine's speed affects both sides."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.seconds, other.seconds, strict=True))


def take_turns(steps: Mapping[str, Step], args: argparse.Namespace, device: str) -> dict[str, Speed]:
    """Speed of each step, measured in turns; the first turn is warm-up."""
    turn = cuda_turn if device == "cuda" else cpu_turn
    turns: dict[str, list[tuple[float, float | None]]] = {name: [] for name in steps}
    for repeat in range(args.repeats + 1):
        for name, step in steps.items():
            measured = turn(step, args.steps)
            if repeat:
                turns[name].append(measured)
    return {name: _speed(measured, args.batch_size) for name, measured in turns.items()}


def _speed(turns: list[tuple[float, float | None]], batch_size: int) -> Speed:
    host = [milliseconds for _, milliseconds in turns if milliseconds is not None]
    return Speed([seconds for seconds, _ in turns], batch_size, statistics.median(host) if host else None)


def cpu_turn(step: Step, count: int) -> tuple[float, None]:
    """Seconds per step."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count, None


def cuda_turn(step: Step, count: int) -> tuple[float, float]:
    """Seconds per step on the device, and milliseconds that the host takes to enqueue one.

    The latter is that of the first step: later ones may have to wait for room in the device's queue.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    clock = time.perf_counter()
    start.record()
    step()
    host_ms = 1000 * (time.perf_counter() - clock)
    for _ in range(count - 1):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / count, host_ms


def matmul_peak(device: str, dtype: torch.dtype, size: int | None = None) -> float:
    """Highest FLOP/s of several square matrix products; by default of a size that fills the device."""
    size = size or (8192 if device == "cuda" else 2048)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def product() -> None:
        torch.mm(left, right)

    if device == "cuda":
        cuda_turn(product, 3)  # warm-up: the choice of a kernel, the clock rate
        seconds = min(cuda_turn(product, 10)[0] for _ in range(5))
    else:
        seconds = min(cpu_turn(product, 1)[0] for _ in range(8))
    return 2 * size**3 / seconds


def step_memory(step: Step, device: str) -> int:
    """Peak bytes of activations and gradients in a step."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(allocated.max())
