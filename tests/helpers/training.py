"""Runs of both stages that take a second, what they leave behind, and launches of several processes."""

import functools
import json
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from helpers.paths import ROOT, TESTS
from helpers.processes import exit_status, forked
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
    return _launch(["--multi_gpu", "--num_processes", "2"], script, words)


def launch_fsdp(script: Path, *words: str) -> str:
    """What a script prints under FSDP2 in two processes on a CPU."""
    options = ["--num_processes", "2", "--use_fsdp", "--fsdp_version", "2"]
    return _launch([*options, "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"], script, words)


def _launch(options: list[str], script: Path, words: Sequence[str]) -> str:
    """As `accelerate launch`, but the processes are forked copies of this one, which has imported everything."""
    command = [*options, "--main_process_port", "0", str(script), *words]
    args = _validate_launch_command(launch_command_parser().parse_args(command))[0]
    number = args.num_processes
    variables = {**prepare_multi_gpu_env(args), "ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1"}
    variables |= {"MASTER_PORT": args.master_port, "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}

    def run(rank: int) -> int:
        os.environ.update(variables, RANK=str(rank), LOCAL_RANK=str(rank))
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        sys.argv = [str(script), *words]
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        children = [forked(functools.partial(run, rank), log) for rank in range(number)]
        with ThreadPoolExecutor(number) as pool:
            ends = {pool.submit(exit_status, child): child for child in children}
            try:
                failed = any(end.result() != 0 for end in as_completed(ends, timeout=300))
            finally:  # one that is left waits for the others
                for end, child in ends.items():
                    if not end.done():
                        os.kill(child, signal.SIGKILL)
        output = log.read_text()
    assert not failed, output[-3000:]
    return output
