"""A hint for training without a GPU."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from ..reporting.blocks import counted
from ..reporting.provenance import available_cores

NATIVE_BF16 = {"avx512_bf16", "amx_bf16"}  # flags of x86 in /proc/cpuinfo

logger = logging.getLogger(__name__)


@functools.cache  # a comparison trains many models in one process
def log_cpu(mixed_precision: str) -> None:
    """Say once that training runs on the CPU, and how it would be faster there."""
    logger.info(cpu_hint(mixed_precision, available_cores(), Path("/proc/cpuinfo")))


def cpu_hint(mixed_precision: str, cores: int, cpu_info: Path) -> str:
    """The sentence of `log_cpu`.

    Args:
        mixed_precision: "no", "bf16" or "fp16".
        cpu_info: file with the flags of the CPU, if there is one.
    """
    sentence = f"no GPU is used: training runs on {counted(cores, 'CPU core')}"
    flags = set(cpu_info.read_text(encoding="utf-8").split()) if cpu_info.is_file() else set()
    if mixed_precision == "no" and NATIVE_BF16 & flags:
        sentence += "; the CPU has native bfloat16: --mixed_precision bf16 is usually faster"
    return sentence
