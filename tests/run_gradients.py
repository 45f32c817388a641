"""Two processes take one step with `BalancedTrainer`, then with a stock Trainer; the first one saves the gradients."""

import sys
from pathlib import Path

from safetensors.torch import save_file
from test_finetuning_trainer import gradients
from test_loss_func import COUNTS, KINDS, gradients_of_a_step, stock_trainer

from livt_hf.cli import run
from livt_hf.losses import compute_loss_func


def save_gradients(argv: list[str]) -> int:
    folder = Path(argv[0])
    found = {"balanced": gradients(folder / "balanced", 4, 1)}
    for kind in KINDS:
        trainer = stock_trainer(folder / kind, compute_loss_func("bal_bce", COUNTS), kind, 4)
        assert trainer.accelerator.num_processes == 2
        found[kind] = gradients_of_a_step(trainer)
    if trainer.accelerator.is_main_process:
        for name, tensors in found.items():
            save_file(tensors, folder / f"{name}.safetensors")
    return 0


sys.exit(run(save_gradients))
