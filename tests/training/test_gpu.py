"""Training on a GPU: precisions, exact resume, no waiting for the device, compilation, one launched process.

What does not need a GPU runs on the CPU as well, so that the tests themselves are tested everywhere.
"""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from helpers.gpu import on_both, on_gpu
from helpers.paths import ROOT
from helpers.training import (
    PRETRAIN,
    QUIET,
    finetune_arguments,
    launch_environment,
    log_lines,
    pretrain_arguments,
    same_weights,
    stop_at,
    weights_of,
)
from livt_hf.training.finetuning import finetune
from livt_hf.training.pretraining import pretrain
from livt_hf.training.pretraining_loop import PretrainingLoop
from livt_hf.training.recipe_trainer import RecipeTrainer

pytestmark = pytest.mark.usefixtures("unrendered")

STEPS = 16  # of a run that is interrupted after 12, in the middle of a logging window of 5
both_stages = pytest.mark.parametrize("stage", ["pretrain", "finetune"])


@pytest.fixture(autouse=True)
def _restored():
    """The settings of torch and Accelerate that runs change for their whole process."""
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)
    AcceleratorState._reset_state(reset_partial_state=True)


def train(stage: str, output_dir: Path, *, compile: bool = False, **changed):
    """A run of a stage as in a process of its own, on the GPU if that is visible; None if a signal stopped it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    if stage == "pretrain":
        return pretrain(pretrain_arguments(output_dir, **changed, compile=compile))
    return finetune(finetune_arguments(output_dir, **changed), {**QUIET, "torch_compile": compile})


def losses(output_dir: Path) -> list[float]:
    return [line["loss"] for line in log_lines(output_dir) if "loss" in line]


def check_device(capsys, device: str) -> None:
    """The run has said where it was: a GPU test on a CPU would show nothing."""
    assert f"world size 1 on {device}" in capsys.readouterr().out


@both_stages
@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "bf16"), pytest.param("cuda", "bf16", marks=on_gpu), pytest.param("cuda", "fp16", marks=on_gpu)],
)
def test_half_precision_trains_as_float32_does_up_to_its_rounding(tmp_path, capsys, device, precision, stage):
    for name in ("no", precision):
        train(stage, tmp_path / name, max_steps=10, logging_steps=1, mixed_precision=name)
        check_device(capsys, device)
    assert losses(tmp_path / precision) != losses(tmp_path / "no")
    assert losses(tmp_path / precision) == pytest.approx(losses(tmp_path / "no"), rel=0.02)
    scaler = tmp_path / precision / "checkpoint-8" / "scaler.pt"
    assert scaler.exists() == (precision == "fp16")
    if precision == "fp16":
        assert torch.load(scaler, weights_only=True)["scale"] >= 2**10  # no step was skipped until nothing was left


@on_both
def test_tf32_trains_as_float32_does_up_to_its_rounding(tmp_path, capsys, device):
    train("pretrain", tmp_path / "float32", max_steps=10, logging_steps=1)
    assert torch.get_float32_matmul_precision() == "highest"
    train("pretrain", tmp_path / "tf32", max_steps=10, logging_steps=1, tf32=True)
    assert torch.get_float32_matmul_precision() == "high"
    check_device(capsys, device)
    assert losses(tmp_path / "tf32") == pytest.approx(losses(tmp_path / "float32"), rel=0.01)


@both_stages
@on_both
def test_with_deterministic_kernels_a_resumed_run_is_bit_identical(tmp_path, capsys, monkeypatch, device, stage):
    torch.use_deterministic_algorithms(True)
    train(stage, tmp_path / "whole", max_steps=STEPS)
    interrupted_run(stage, tmp_path / "resumed", monkeypatch)
    check_device(capsys, device)
    assert same_weights(tmp_path / "whole", tmp_path / "resumed")
    assert log_lines(tmp_path / "whole") == log_lines(tmp_path / "resumed")


@both_stages
@on_gpu
def test_with_the_default_kernels_a_resumed_run_differs_by_their_rounding(tmp_path, monkeypatch, stage):
    """Sums in the backward pass are added in any order. The largest difference is printed."""
    train(stage, tmp_path / "whole", max_steps=STEPS)
    interrupted_run(stage, tmp_path / "resumed", monkeypatch)
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "resumed")
    difference = max((whole[name] - resumed[name]).abs().max().item() for name in whole)
    print(f"{stage}: the largest difference of a weight is {difference:.1e}")
    assert losses(tmp_path / "resumed") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)


def interrupted_run(stage: str, output_dir: Path, monkeypatch) -> None:
    """A run stopped by a signal, and continued."""
    with monkeypatch.context() as patched:
        stop_at(12, patched)
        assert train(stage, output_dir, max_steps=STEPS) is None
    assert (output_dir / "checkpoint-12").is_dir()
    assert train(stage, output_dir, max_steps=STEPS) is not None


@both_stages
@pytest.mark.parametrize(
    ("device", "compile"), [("cpu", False), *(pytest.param("cuda", value, marks=on_gpu) for value in (False, True))]
)
def test_no_step_waits_for_the_device(tmp_path, capsys, monkeypatch, device, stage, compile):
    """From the third step, when all is set up, to the sixth: a synchronization between two logged steps is an error."""
    modes = []

    def set_mode(mode: str) -> None:
        modes.append(mode)
        if device == "cuda":
            torch.cuda.set_sync_debug_mode(mode)

    owner, name = (PretrainingLoop, "_optimizer_step") if stage == "pretrain" else (RecipeTrainer, "training_step")
    step, calls = getattr(owner, name), []

    def watched(*args, **kwargs):
        calls.append(None)
        if len(calls) in (3, 7):
            set_mode("error" if len(calls) == 3 else "default")
        return step(*args, **kwargs)

    monkeypatch.setattr(owner, name, watched)
    with contextlib.ExitStack() as stack:
        if device == "cuda":
            stack.callback(torch.cuda.set_sync_debug_mode, "default")
        options = {"logging_steps": 20, "save_every": 100, "mixed_precision": "bf16", "compile": compile}
        train(stage, tmp_path, max_steps=10, **options)
    check_device(capsys, device)
    assert modes == ["error", "default"]
    assert len(calls) == 10


@both_stages
@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=on_gpu)])
def test_a_compiled_run_is_the_eager_one(tmp_path, capsys, device, stage):
    """Without drop path, whose draws differ."""
    without = {"drop_path": 0.0} if stage == "finetune" else {}
    for name in ("eager", "compiled"):
        train(stage, tmp_path / name, max_steps=12, compile=name == "compiled", **without)
        check_device(capsys, device)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)


@on_both
def test_one_process_under_accelerate_launch(tmp_path, device):
    options = {**PRETRAIN, "max_steps": 2, "output_dir": tmp_path}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--mixed_precision", "bf16"]
    command += [str(ROOT / "scripts" / "run_mae.py"), *(f"--{name}={value}" for name, value in options.items())]
    environment = launch_environment()
    if device == "cuda":
        del environment["ACCELERATE_USE_CPU"]
    # on a GPU, before the time of the whole test is up
    limit = 90 if device == "cuda" else 300
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert f"world size 1 on {device}, mixed precision bf16" in run.stdout
    assert [line["step"] for line in log_lines(tmp_path)] == [2]
