"""`--compile`: the first step comes, no later one compiles again, and the run is the eager one."""

import os
import subprocess
import sys
from contextlib import ExitStack

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForImageClassification, AutoModelForPreTraining

from helpers.paths import ROOT
from helpers.training import PRETRAIN, QUIET, finetune_arguments, log_lines, pretrain_arguments
from livt_hf.training.finetuning import finetune
from livt_hf.training.pretraining import pretrain
from livt_hf.training.run import Run

pytestmark = pytest.mark.usefixtures("unrendered")


@pytest.fixture
def compiled(monkeypatch):
    """As `accelerate launch --dynamo_backend aot_eager`; compiling anything after the second step is an error."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    AcceleratorState._reset_state(reset_partial_state=True)
    stop_requested = Run.stop_requested

    def at_the_end_of_a_step(run, accelerator, step):
        if step == 2:
            no_more.enter_context(torch._dynamo.config.patch(error_on_recompile=True))
            programs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        return stop_requested(run, accelerator, step)

    programs: list[int] = []
    monkeypatch.setattr(Run, "stop_requested", at_the_end_of_a_step)
    with ExitStack() as no_more:
        yield programs
    assert programs == [torch._dynamo.utils.counters["stats"]["unique_graphs"]]
    assert programs[0] > 0
    AcceleratorState._reset_state(reset_partial_state=True)


def losses(folder):
    return [line["loss"] for line in log_lines(folder) if "loss" in line]


def test_pretraining_compiles_nothing_after_the_second_step(tmp_path, compiled):
    """Its probe and pictures use batches of other sizes."""
    pretrain(pretrain_arguments(tmp_path, max_steps=10, probe_every=0.5, picture_every=0.5))
    assert AutoModelForPreTraining.from_pretrained(tmp_path / "checkpoint-8").num_parameters() > 0


def test_finetuning_compiles_nothing_after_the_second_step(tmp_path, compiled):
    """The last batch of an evaluation is smaller."""
    arguments = finetune_arguments(tmp_path, max_steps=12, eval_every=1)
    finetune(arguments, {**QUIET, "per_device_eval_batch_size": 9})
    assert [line["step"] for line in log_lines(tmp_path) if "eval_accuracy" in line] == [10, 12]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_compiled_run_is_the_eager_one(tmp_path, stage, monkeypatch):
    """Without drop path, whose draws differ. The names in its files are plain."""
    for name in ("eager", "compiled"):
        if name == "compiled":
            monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "aot_eager")
            AcceleratorState._reset_state(reset_partial_state=True)
        if stage == "pretrain":
            pretrain(pretrain_arguments(tmp_path / name, max_steps=12))
        else:
            finetune(finetune_arguments(tmp_path / name, max_steps=12, drop_path=0.0), QUIET)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)
    load = AutoModelForPreTraining if stage == "pretrain" else AutoModelForImageClassification
    for folder in (tmp_path / "compiled", tmp_path / "compiled" / "checkpoint-8"):
        _, info = load.from_pretrained(folder, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_fine_tuning_that_compiles_concerns_one_run_only(tmp_path):
    """It compiles two programs: a block, and what is done to a batch before the model."""
    asked = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    for name, options, programs in (("with", asked, 2), ("without", {}, 0)):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        finetune(finetune_arguments(tmp_path / name, max_steps=2), {**QUIET, **options})
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == programs


@pytest.mark.slow
def test_the_first_compiled_step_comes_while_workers_wait(tmp_path):
    """The whole command with torch's own compiler, from an empty cache; a first step that never comes ends here."""
    options = {**PRETRAIN, "max_steps": 3, "logging_steps": 3, "num_workers": 1, "output_dir": tmp_path / "run"}
    command = [sys.executable, str(ROOT / "scripts" / "run_mae.py"), "--compile", "True"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "ACCELERATE_USE_CPU": "true"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "compiling a block of each kind and the augmentation: the first step takes a minute or more" in run.stdout
    assert "No CUDA runtime" not in run.stderr
    assert [line["step"] for line in log_lines(tmp_path / "run")] == [3]
    assert any((tmp_path / "cache").iterdir())
