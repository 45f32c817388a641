"""A GPU that is too small: one line that names the options which need less memory."""

import pytest
import torch

from helpers.cli import run_stage, the_error, the_error_after_a_bar, words
from helpers.gpu import on_gpu
from livt_hf.cli import guarded, main
from livt_hf.cli.memory import out_of_memory

LESS = (
    ": lower --batch_size and raise --gradient_accumulation_steps to keep the global batch, or use "
    "--gradient_checkpointing true"
)
# In the words of torch
MESSAGE = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 1 has a total capacity of 79.10 GiB of which 1.25 GiB is "
    "free. Including non-PyTorch memory, this process has 77.84 GiB memory in use. Of the allocated memory 76.00 GiB "
    "is allocated by PyTorch, and 1.10 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory "
    "is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
WHERE = "out of memory on cuda:1 (20.00 GiB more were needed, 79.10 GiB in total)"


def run_out(*args, **kwargs):
    raise torch.OutOfMemoryError(MESSAGE)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_training_names_what_needs_less_memory(capsys, monkeypatch, tmp_path, data, stage):
    monkeypatch.setattr(torch.optim.AdamW, "step", run_out)
    assert the_error_after_a_bar(capsys, run_stage(stage, data, tmp_path / "out")) == WHERE + LESS


@pytest.mark.parametrize("command", ["evaluate", "predict", "adjust"])
def test_other_commands_name_the_batch_size(capsys, monkeypatch, command):
    module = __import__(f"livt_hf.cli.{command}", fromlist=["run"])
    monkeypatch.setattr(module, "read_options", run_out)
    assert the_error(capsys, main(words(command))) == f"{WHERE}: lower --batch_size"


def test_without_batches_the_gpu_can_be_hidden():
    assert out_of_memory(RuntimeError("CUDA error: out of memory"), "demo") == (
        "out of memory on cuda:0: use a GPU with more memory, or hide it from this command with CUDA_VISIBLE_DEVICES="
    )


def test_other_errors_of_torch_keep_their_traceback():
    def run(argv):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        guarded(run, [])


@on_gpu
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_gpu_that_really_is_too_small(capsys, tmp_path, stage):
    """ViT-B with a batch of 320 images of 224 px on a hundredth of the GPU: less than its weights and optimizer."""
    torch.cuda.set_per_process_memory_fraction(0.01)
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224}
    options = {**sizes, "patch_size": 16, "batch_size": 320, "warmup_epochs": 0}
    error = the_error_after_a_bar(capsys, run_stage(stage, "digits", tmp_path / "out", **options))
    assert error.startswith("out of memory on cuda:0 (")
    assert error.endswith(LESS)
