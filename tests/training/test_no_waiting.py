"""Between two logged steps, neither stage reads a tensor's values on the host: on a GPU each reading waits for it."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.training import QUIET, finetune_arguments, pretrain_arguments
from livt_hf import losses
from livt_hf.training.finetuning import finetune
from livt_hf.training.pretraining import pretrain
from livt_hf.training.run import Run

pytestmark = pytest.mark.usefixtures("unrendered")

READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")
OPERATORS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "index.Tensor_mask")
FIRST, LAST = 3, 6  # counted steps are those after FIRST up to LAST


class ReadsOnTheHost(TorchDispatchMode):
    """Counts operators and methods that return a tensor's values to Python."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.found = Counter()
        self.active = False
        for name in READS:
            monkeypatch.setattr(torch.Tensor, name, self.counted(name, getattr(torch.Tensor, name)))

    def counted(self, name, method):
        def counting(tensor, *args, **kwargs):
            if self.active:
                self.found[name] += 1
            return method(tensor, *args, **kwargs)

        return counting

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        masks = [index for index in args[1] if index is not None] if name in ("index", "index_put_") else []
        if name in OPERATORS or any(index.dtype is torch.bool for index in masks):
            self.found[name] += 1
        return operator(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch):
    """What is read in the counted steps of a run; the values of labels are checked as on an accelerator."""
    monkeypatch.setattr(losses, "_checks_every_batch", lambda device: False)
    mode, stop_requested = ReadsOnTheHost(monkeypatch), Run.stop_requested

    def at_the_end_of_a_step(run, accelerator, step):
        if step == FIRST:
            mode.active = True
            mode.__enter__()
        if step == LAST:
            mode.active = False
            mode.__exit__(None, None, None)
        return stop_requested(run, accelerator, step)

    monkeypatch.setattr(Run, "stop_requested", at_the_end_of_a_step)
    return mode.found


STEPS = {"max_steps": LAST + 1, "logging_steps": LAST + 1, "save_every": LAST + 1, "num_workers": 1}


def test_pretraining_reads_nothing(tmp_path, reads):
    pretrain(pretrain_arguments(tmp_path, gradient_accumulation_steps=2, batch_size=16, **STEPS))
    assert reads == {}


@pytest.mark.parametrize(
    "changed", [{}, {"ema": 0.9, "mixup": 0.0, "loss": "ldam"}, {"loss": "lade", "mixup": 0.0, "cutmix": 0.0}]
)
def test_finetuning_reads_nothing(tmp_path, reads, changed):
    options = {"random_erasing": 1.0, "gradient_accumulation_steps": 2, "batch_size": 16, **changed}
    finetune(finetune_arguments(tmp_path, **STEPS, **options), QUIET)
    assert reads == {}


def test_reads_are_counted(reads, monkeypatch):
    tensor = torch.arange(3)
    run = Run("nowhere")
    run.stop_requested(one_process := type("Accelerator", (), {"num_processes": 1}), FIRST)
    (
        bool(tensor[0] > 0),
        tensor.tolist(),
        tensor[tensor > 1],
        tensor.sum().item(),
        tensor.cpu(),
        torch.equal(tensor, tensor),
    )
    run.stop_requested(one_process, LAST)
    assert (
        reads["__bool__"] == reads["tolist"] == reads["item"] == reads["cpu"] == reads["index"] == reads["equal"] == 1
    )
    assert reads["_local_scalar_dense"] == 2
