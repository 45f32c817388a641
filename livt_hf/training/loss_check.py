"""Non-finite losses: their update is skipped on the device, and the run ends when it next reads values anyway."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer


class LossCheck:
    """Skips the update of a step whose loss is not finite, without waiting for the device to compute the loss.

    Call `before_update` at every step and `raise_if_bad` before anything is logged, evaluated or saved.

    Args:
        folder: with the last good checkpoint, named in the error.
    """

    def __init__(self, accelerator: Accelerator, folder: Path):
        self.accelerator, self.folder = accelerator, folder
        self.first_bad_step = torch.full((), -1, device=accelerator.device)

    def before_update(self, optimizer: Optimizer, loss: Tensor, step: int) -> None:
        """Skip the update of an optimizer step if the loss is not finite in any process.

        Args:
            optimizer: unwrapped. A fused one skips by itself; with any other, the error is raised at once.
            loss: of this process, summed over micro-batches.
        """
        bad = (~torch.isfinite(loss)).float()
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad, "sum").clamp(max=1)
        optimizer.found_inf = bad  # type: ignore[attr-defined]  # read by the fused optimizer
        self.first_bad_step = torch.where((bad > 0) & (self.first_bad_step < 0), step, self.first_bad_step)
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            self.raise_if_bad()

    def raise_if_bad(self) -> None:
        """Raise ValueError if the loss of a step was not finite. Waits for the device."""
        step = int(self.first_bad_step.item())
        if step >= 0:
            raise ValueError(
                f"the loss was not finite at step {step}; the update was skipped and the last checkpoint in "
                f"{self.folder} is good: lower --base_lr, or use --mixed_precision bf16 or no instead of fp16"
            )
