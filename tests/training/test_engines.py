"""One run on several engines: two processes, two machines, FSDP2, activation checkpointing."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import HELPERS, ROOT
from helpers.training import (
    PRETRAIN,
    QUIET,
    finetune_arguments,
    launch_environment,
    launch_fsdp,
    launch_two,
    log_lines,
    pretrain_arguments,
    same_weights,
)
from livt_hf.models.attention import FusedAttention
from livt_hf.training.finetuning import finetune
from livt_hf.training.pretraining import pretrain

pytestmark = pytest.mark.usefixtures("unrendered")
SCRIPT = ROOT / "scripts" / "run_mae.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return pretrain(pretrain_arguments(tmp_path_factory.mktemp("engines") / "whole"))


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in log_lines(folder) if "loss" in line]


def begin(finished: Path, folder: Path, step: int) -> None:
    """A folder with the first steps of the finished run."""
    folder.mkdir()
    shutil.copytree(finished / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    shutil.copy(finished / "metrics.jsonl", folder)


def reopen(folder: Path, step: int) -> None:
    """As if the run had been cut off after the checkpoint of a step."""
    (folder / "run.json").unlink()
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)


def test_one_process_then_two_then_one_is_the_same_run(finished, tmp_path):
    begin(finished, tmp_path / "run", 8)
    options = {**PRETRAIN, "output_dir": tmp_path / "run", "batch_size": 16}
    output = launch_two(SCRIPT, *(part for name, value in options.items() for part in (f"--{name}", str(value))))
    assert "world size 2 on cpu" in output
    assert "checkpoint-8" in output
    reopen(tmp_path / "run", 16)
    pretrain(pretrain_arguments(tmp_path / "run"))
    assert losses(tmp_path / "run") == pytest.approx(losses(finished), rel=1e-4)


def test_two_machines_form_one_world(finished, tmp_path):
    """Two launches with `--num_machines 2` that meet on the loopback, as two nodes of a cluster would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {**PRETRAIN, "output_dir": tmp_path / "run", "batch_size": 16}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2"]
    command += ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    script = [str(SCRIPT)]
    script += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": launch_environment()}
    machines = [subprocess.Popen([*command, "--machine_rank", str(rank), *script], **pipes) for rank in range(2)]
    first, second = (machine.communicate(timeout=300) for machine in machines)
    assert [machine.returncode for machine in machines] == [0, 0], first[1][-2000:] + second[1][-2000:]
    assert all("world size 2 on cpu" in output for output, _ in (first, second))
    assert losses(tmp_path / "run") == pytest.approx(losses(finished), rel=1e-4)


def test_fsdp2_is_the_same_run_and_its_checkpoints_resume_in_one_process(finished, tmp_path):
    """Sharded from the start to step 16, then one process; probe and pictures need whole weights in between."""
    options = {**PRETRAIN, "output_dir": tmp_path / "run", "batch_size": 16, "probe_every": 1.2, "picture_every": 1}
    words = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    assert "world size 2 on cpu, FSDP" in launch_fsdp(HELPERS / "fsdp_mae.py", *words)
    assert losses(tmp_path / "run") == pytest.approx(losses(finished), rel=1e-4)
    reopen(tmp_path / "run", 16)
    pretrain(pretrain_arguments(tmp_path / "run", probe_every=1.2, picture_every=1))
    assert losses(tmp_path / "run") == pytest.approx(losses(finished), rel=1e-4)
    assert [line["step"] for line in log_lines(tmp_path / "run") if "probe_accuracy" in line] == [0, 12, 24]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_activation_checkpointing_computes_the_same_twice(tmp_path, monkeypatch, stage):
    """In pretraining the only decoder block reads its projections itself, and is not counted."""
    calls = []
    forward = FusedAttention.forward

    def counted(self, *args, **kwargs):
        calls.append(self.training)
        return forward(self, *args, **kwargs)

    def train(name, **changed):
        before = sum(calls)
        if stage == "pretrain":
            pretrain(pretrain_arguments(tmp_path / name, max_steps=2, **changed))
        else:
            finetune(finetune_arguments(tmp_path / name, max_steps=2, **changed), QUIET)
        return sum(calls) - before

    monkeypatch.setattr(FusedAttention, "forward", counted)
    assert train("plain") == 2 * 2  # steps x blocks
    assert train("twice", gradient_checkpointing=True) == 2 * 4
    assert same_weights(tmp_path / "plain", tmp_path / "twice")
