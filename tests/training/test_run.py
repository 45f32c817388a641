"""A run in its folder: its record, and resuming a run of an earlier version."""

import json
import os
import shutil
from pathlib import Path

import filelock
import pytest
import torch

from helpers.cli import run_stage, the_error
from helpers.paths import FIXTURES
from helpers.training import QUIET, finetune_arguments, log_lines, pretrain_arguments
from livt_hf.config.arguments import FinetuneArguments, PretrainArguments
from livt_hf.training.finetuning import finetune
from livt_hf.training.pretraining import pretrain
from livt_hf.training.record import RunOptions

pytestmark = pytest.mark.usefixtures("unrendered")


def test_the_record_has_the_command_that_repeats_the_run(tmp_path):
    args = pretrain_arguments(tmp_path / "mae", betas=[0.9, 0.99], norm_pix_loss=False)
    assert RunOptions(args).record(24)["command"] == (
        "livt pretrain --dataset digits --hidden_size 32 --num_hidden_layers 2 --num_attention_heads 2 --patch_size 2 "
        "--image_size 8 --epochs 100 --warmup_epochs 10 --max_steps 24 --batch_size 32 --base_lr 0.004 "
        "--betas 0.9 0.99 --output_dir mae --norm_pix_loss False --decoder_hidden_size 16 "
        "--decoder_num_hidden_layers 1 --decoder_num_attention_heads 2"
    )
    args = finetune_arguments(tmp_path / "model", pretrained=str(tmp_path / "mae"), loss="ce")
    command = RunOptions(args, {"max_grad_norm": 1.0, "disable_tqdm": True}).record(24)["command"]
    assert command.startswith("livt finetune --dataset digits --pretrained mae --hidden_size 32 ")
    assert " --output_dir model " in command
    assert " --loss ce " in command
    assert command.endswith(" --max_grad_norm 1")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"steps": "4", "arguments": {}}', "\\xff"])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_damaged_record_is_one_line(capsys, tmp_path, data, stage, text):
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    error = the_error(capsys, run_stage(stage, data, tmp_path))
    assert error == (
        f"{tmp_path}/run.json is damaged: it is not the record of a run; delete it, and the command that trained the "
        "model continues from the last checkpoint"
    )


@pytest.mark.parametrize(("stage", "file"), [("pretrain", "state.json"), ("finetune", "run.json")])
def test_a_damaged_record_of_a_checkpoint_is_one_line(capsys, tmp_path, stage, file):
    shutil.copytree(FIXTURES / "runs_e5bae23" / stage, tmp_path / "run")
    record = tmp_path / "run" / "checkpoint-10" / file
    record.write_bytes(b"\0" * record.stat().st_size)
    error = the_error(capsys, run_stage(stage, "digits", tmp_path / "run"))
    assert error == f"resume: '{record}' is damaged; delete that checkpoint to continue from an earlier one"


def test_a_finished_run_in_a_read_only_folder_has_nothing_to_do(capsys, tmp_path, data, monkeypatch):
    """Whoever has no right to write there gets the same answer; the tests may run as root."""
    assert run_stage("finetune", data, tmp_path) == 0
    access, acquire = os.access, filelock.FileLock._acquire

    def refused(self):
        if Path(self.lock_file).parent == tmp_path:
            raise PermissionError(13, "Permission denied")
        acquire(self)

    monkeypatch.setattr(filelock.FileLock, "_acquire", refused)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    capsys.readouterr()
    assert run_stage("finetune", data, tmp_path) == 0
    assert "nothing to do" in capsys.readouterr().out
    error = the_error(capsys, run_stage("finetune", data, tmp_path, max_steps=2))
    assert error.startswith(f"output_dir: '{tmp_path}'")


def erase_as_before(pixels, boxes, seeds, num_pixels):
    """The noise of random erasing until e5bae23: torch's generator, one image after the other."""
    for image, (top, left, height, width), seed in zip(pixels, boxes.tolist(), seeds.tolist(), strict=True):
        noise = torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))
        image[:, top : top + height, left : left + width] = noise
    return pixels


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_run_of_an_earlier_version_resumes(tmp_path, stage, monkeypatch):
    """Runs of commit e5bae23, ended by SIGTERM at step 10 of 24; uninterrupted.jsonl is the log without the signal.

    Only the noise of random erasing has changed since; with that of then, the rest is the same run.
    """
    monkeypatch.setattr("livt_hf.data.batch_ops.erase", erase_as_before)
    run_dir = tmp_path / "run"
    shutil.copytree(FIXTURES / "runs_e5bae23" / stage, run_dir)
    record = json.loads((run_dir / "checkpoint-10" / ("state.json" if stage == "pretrain" else "run.json")).read_text())
    options = {**record["arguments"], "output_dir": str(run_dir)}
    if stage == "pretrain":
        assert pretrain(PretrainArguments(**options)) == run_dir
    else:
        assert finetune(FinetuneArguments(**options), QUIET) is not None
    found, expected = log_lines(run_dir), log_lines(run_dir, "uninterrupted.jsonl")
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for name in ("loss", "lr"):
        values, expected_values = ([line[name] for line in lines if name in line] for lines in (found, expected))
        assert values == pytest.approx(expected_values, rel=1e-6)
    assert json.loads((run_dir / "run.json").read_text())["steps"] == 24
