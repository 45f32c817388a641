"""Runs of both stages that take a second, what they leave behind, and launches of several processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from helpers.paths import ROOT, TESTS
from livt_hf.config.arguments import FinetuneArguments, PretrainArguments

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
FINETUNE = {
    **SIZES,
    "dataset": "digits",
    "image_size": 8,
    "patch_size": 2,
    "batch_size": 32,
    "max_steps": 24,
    "epochs": 100,
    "warmup_epochs": 10,
    "base_lr": 4e-3,
    "num_workers": 0,
    "save_every": 8,
    "logging_steps": 5,
    "drop_path": 0.3,
    "crop_ratio": 1.0,
}
PRETRAIN = {
    "dataset": "digits",
    "image_size": 8,
    "patch_size": 2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "batch_size": 32,
    "max_steps": 24,
    "base_lr": 4e-3,
    "epochs": 100,
    "warmup_epochs": 10,
    "num_workers": 0,
    "save_every": 8,
    "logging_steps": 5,
}
QUIET = {"disable_tqdm": True}


def finetune_arguments(output_dir: Path, **changed) -> FinetuneArguments:
    return FinetuneArguments(**{**FINETUNE, "output_dir": str(output_dir), **changed})


def pretrain_arguments(output_dir: Path, **changed) -> PretrainArguments:
    return PretrainArguments(**{**PRETRAIN, "output_dir": str(output_dir), **changed})


def log_lines(output_dir: Path, name: str = "metrics.jsonl") -> list[dict]:
    """The log of a run, without the speeds: they differ from run to run."""
    lines = [json.loads(line) for line in (output_dir / name).read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    return lines


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_weights(first: Path, second: Path) -> bool:
    one, two = weights_of(first), weights_of(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def stop_at(step: int, monkeypatch, optimizer=torch.optim.AdamW) -> None:
    """SIGTERM during an optimizer step."""
    optimizer_step, steps = optimizer.step, []

    def step_and_signal(self, *args, **kwargs):
        steps.append(None)
        if len(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return optimizer_step(self, *args, **kwargs)

    monkeypatch.setattr(optimizer, "step", step_and_signal)


def launch_environment() -> dict[str, str]:
    """For `accelerate launch` on a CPU, of scripts that import the package and these helpers."""
    path = os.pathsep.join([str(ROOT), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def launch_two(script: Path, *words: str) -> str:
    """What a script prints in two processes on a CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", str(script), *words]
    return _printed(command)


def launch_fsdp(script: Path, *words: str) -> str:
    """What a script prints under FSDP2 in two processes on a CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--use_fsdp"]
    command += ["--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--main_process_port", "0"]
    return _printed([*command, str(script), *words])


def _printed(command: list[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, env=launch_environment(), timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout
