"""A machine or GPU that is too small for a command: what to change, in one line."""

from __future__ import annotations

import re
import sys

from ..data.worker_failure import WORKER_FAILED, is_worker_failure

TRAINING = ("pretrain", "finetune", "compare")
IN_BATCHES = ("evaluate", "predict", "adjust")


def explain_memory(error: RuntimeError, command: str) -> str | None:
    """The reason in words if memory ran out, of a GPU or of the machine; None for any other error."""
    if is_out_of_memory(error):
        return out_of_memory(error, command)
    return WORKER_FAILED if is_worker_failure(error) else None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU has run out of memory."""
    torch = sys.modules.get("torch")  # most commands do not need it
    return torch is not None and (
        isinstance(error, torch.OutOfMemoryError) or "CUDA error: out of memory" in str(error)
    )


def out_of_memory(error: RuntimeError, command: str) -> str:
    """The error in words: device, sizes as far as torch names them, and the options that need less memory."""
    message = str(error)
    device = re.search(r"GPU (\d+)", message)
    sizes = [
        f"{size[1]} {words}"
        for pattern, words in (
            (r"Tried to allocate ([\d.]+ \w+)", "more were needed"),
            (r"total capacity of ([\d.]+ \w+)", "in total"),
        )
        if (size := re.search(pattern, message))
    ]
    where = f"out of memory on cuda:{device[1] if device else 0}" + (f" ({', '.join(sizes)})" if sizes else "")
    if command in TRAINING:
        return (
            f"{where}: lower --batch_size and raise --gradient_accumulation_steps to keep the global batch, or use "
            "--gradient_checkpointing true"
        )
    if command in IN_BATCHES:
        return f"{where}: lower --batch_size"
    return f"{where}: use a GPU with more memory, or hide it from this command with CUDA_VISIBLE_DEVICES="
