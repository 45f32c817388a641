"""The trainer of balanced fine-tuning: its gradients, precision, losses and evaluation."""

import multiprocessing

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import TrainingArguments

from helpers.gradients import KINDS, balanced_gradients, balanced_trainer, gradients_of_the_batch
from helpers.paths import HELPERS
from helpers.training import QUIET, SIZES, finetune_arguments, launch_two, log_lines
from livt_hf import LivtConfig, ViTForBalancedClassification
from livt_hf.data import EvalTransform, FinetuneTransform, ImageDataset, Mixup, class_counts, load_long_tailed
from livt_hf.losses import build_loss, effective_number_weights
from livt_hf.models.modeling_livt import config_for_classes
from livt_hf.optimization import WeightAverage, learning_rate
from livt_hf.training.finetuning import finetune
from livt_hf.training.recipe_trainer import RecipeTrainer

pytestmark = pytest.mark.usefixtures("unrendered")


def test_accumulated_micro_batches_have_the_gradients_of_the_whole_batch(tmp_path):
    """8 x 1 = 4 x 2 = 2 x 4 accumulated, with mixup of the global batch."""
    whole = balanced_gradients(tmp_path, 8, 1)
    assert max(gradient.abs().max() for gradient in whole.values()) > 1e-2
    for batch_size, accumulation in ((4, 2), (2, 4)):
        for name, gradient in balanced_gradients(tmp_path, batch_size, accumulation).items():
            torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-5, msg=name)


def test_two_processes_have_the_gradients_of_the_whole_batch(tmp_path):
    """8 x 1 = 2 processes x 4: `RecipeTrainer` with mixup; `BalancedTrainer` and a stock Trainer, both label kinds."""
    launch_two(HELPERS / "gradients.py", str(tmp_path))
    expected = {"balanced": balanced_gradients(tmp_path / "one", 8, 1)}
    expected |= {
        f"{trainer}{kind}": gradients_of_the_batch("bal_bce", kind) for kind in KINDS for trainer in ("", "drop_in_")
    }
    for run, whole in expected.items():
        found = load_file(tmp_path / f"{run}.safetensors")
        assert set(found) == set(whole)
        assert max(gradient.abs().max() for gradient in whole.values()) > 1e-2
        for name, gradient in whole.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=f"{run}: {name}")


def test_evaluation_reports_groups_and_calibration(tmp_path):
    metrics = balanced_trainer(tmp_path, 8, 1).evaluate()
    names = ("accuracy", "many", "medium", "few", "macro_accuracy", "ece", "mce")
    assert set(metrics) == {"epoch", *(f"eval_{name}" for name in names)}
    # An untrained classifier ~ 2e-5 predicts almost evenly: confidence 10 %.
    assert metrics["eval_ece"] == pytest.approx(abs(metrics["eval_accuracy"] - 10), abs=0.5)


def test_a_non_finite_loss_stops_before_the_update(tmp_path, monkeypatch):
    subject = balanced_trainer(tmp_path, 8, 1)
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    forward = ViTForBalancedClassification.forward

    def poisoned(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * float("inf")
        return output

    monkeypatch.setattr(ViTForBalancedClassification, "forward", poisoned)
    with pytest.raises(ValueError, match="the loss was not finite at step 1;"):
        subject.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.model.state_dict().items())


def test_a_bad_step_is_found_at_the_next_logged_step_and_changes_nothing(tmp_path, monkeypatch):
    """No step waits for the device: the update is skipped there, and reported at the next log line."""
    forward, before = ViTForBalancedClassification.forward, []

    def poisoned(self, *args, **kwargs):
        before.append({name: tensor.clone() for name, tensor in self.state_dict().items()})
        output = forward(self, *args, **kwargs)
        if len(before) == 3:
            output.logits = output.logits * float("nan")
        return output

    monkeypatch.setattr(ViTForBalancedClassification, "forward", poisoned)
    with pytest.raises(ValueError, match="not finite at step 3;"):
        finetune(finetune_arguments(tmp_path), QUIET)
    assert len(before) == 5  # the logged step
    assert all(torch.equal(before[2][name], before[3][name]) for name in before[2])
    assert not all(torch.equal(before[3][name], before[4][name]) for name in before[3])
    assert not list(tmp_path.glob("checkpoint-*"))


def test_an_optimizer_that_cannot_skip_stops_before_its_update(tmp_path, monkeypatch):
    subject = balanced_trainer(tmp_path, 8, 1)
    subject.optimizer = torch.optim.SGD(subject.model.parameters(), lr=0.1)
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    monkeypatch.setattr(subject, "current_loss", lambda: lambda logits, labels: logits.sum() * float("nan"))
    with pytest.raises(ValueError, match="not finite at step 1;"):
        subject.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.model.state_dict().items())


def test_gradients_are_measured_at_logged_steps_only(tmp_path, monkeypatch):
    clip, calls = Accelerator.clip_grad_norm_, []

    def counted(self, *args, **kwargs):
        calls.append(None)
        return clip(self, *args, **kwargs)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", counted)
    finetune(finetune_arguments(tmp_path / "steps", max_steps=12), QUIET)
    assert len(calls) == 2
    assert [line["step"] for line in log_lines(tmp_path / "steps") if "grad_norm" in line] == [5, 10]
    finetune(finetune_arguments(tmp_path / "clipped", max_steps=3), {**QUIET, "max_grad_norm": 1.0})
    assert len(calls) == 2 + 3


def test_no_worker_outlives_the_training(tmp_path):
    """Python would kill it at exit, after ten seconds."""
    finetune(finetune_arguments(tmp_path, num_workers=1, max_steps=2), QUIET)
    assert not multiprocessing.active_children()


def test_a_resume_takes_the_changed_options_from_its_first_step(tmp_path, monkeypatch):
    options = {"max_steps": 8, "save_every": 4, "layer_decay": 0.5}
    finetune(finetune_arguments(tmp_path, **options), QUIET)
    optimizer_step, steps = torch.optim.AdamW.step, []

    def read(self, *args, **kwargs):
        steps.append([{**group} for group in self.param_groups])
        return optimizer_step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", read)
    for name in ("run.json", "model.safetensors"):
        (tmp_path / name).unlink()
    changed = {"base_lr": 1e-3, "weight_decay": 0.3, "betas": [0.8, 0.9], "resume": str(tmp_path / "checkpoint-4")}
    args = finetune_arguments(tmp_path, **options, **changed)
    finetune(args, QUIET)
    first, peak = steps[-4], 1e-3 * 32 / 256
    assert {group["weight_decay"] for group in first} == {0.0, 0.3}
    for group in first:
        assert tuple(group["betas"]) == (0.8, 0.9)
        assert group["initial_lr"] == peak * group["lr_scale"]
        assert group["lr"] == pytest.approx(learning_rate(4, peak, args.min_lr, 0.8, 8) * group["lr_scale"], rel=1e-12)
    saved = torch.load(tmp_path / "checkpoint-8" / "scheduler.pt", weights_only=True)
    assert (saved["last_epoch"], max(saved["base_lrs"])) == (8, peak)
    state = torch.load(tmp_path / "checkpoint-8" / "optimizer.pt", weights_only=True)["state"]
    assert {int(entry["step"]) for entry in state.values()} == {8}


def test_an_odd_batch_with_mixup_is_named(tmp_path):
    with pytest.raises(ValueError, match="batch_size: 7 is odd"):
        balanced_trainer(tmp_path, 7, 1, mixup=Mixup(10)).train()


def test_bf16_trains_on_a_cpu_as_float32_does_up_to_its_rounding(tmp_path):
    losses = []
    for precision in ("no", "bf16"):
        finetune(finetune_arguments(tmp_path / precision, max_steps=10, mixed_precision=precision), QUIET)
        losses.append([line["loss"] for line in log_lines(tmp_path / precision) if "loss" in line])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_the_average_by_hand():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    average = WeightAverage(model, 0.75)
    for value in (2.0, 4.0):
        model.weight.data.fill_(value)
        average.update(model)
    assert average.weights["weight"].item() == 0.75 * (0.75 * 1 + 0.25 * 2) + 0.25 * 4
    with average.applied_to(model):
        assert model.weight.item() == average.weights["weight"].item()
    assert model.weight.item() == 4.0


def test_ldam_is_reweighted_from_its_epoch_on(tmp_path):
    """On logits of 0, the loss before and after, from the definitions."""
    splits = load_long_tailed("digits")
    subject = balanced_trainer(tmp_path, 8, 1, drw_epoch=2.0, loss="ldam")
    counts, steps = class_counts(splits["train"]), subject.training_batches().steps_per_epoch
    logits, labels = torch.zeros(4, 10), torch.tensor([0, 3, 8, 9])
    plain = build_loss("ldam", counts)(logits, labels)
    weighted = build_loss("ldam", counts, class_weights=effective_number_weights(counts))(logits, labels)
    assert plain != weighted
    for step, expected in ((0, plain), (2 * steps - 1, plain), (2 * steps, weighted), (3 * steps, weighted)):
        subject.state.global_step = step
        assert subject.current_loss()(logits, labels) == expected
    with pytest.raises(ValueError, match="drw_epoch: deferred re-weighting is for ldam only, and the loss is bal_bce"):
        balanced_trainer(tmp_path, 8, 1, drw_epoch=2.0)
    with pytest.raises(
        ValueError, match="drw_epoch: deferred re-weighting belongs to ldam; leave it out with --loss ce"
    ):
        finetune_arguments(tmp_path, loss="ce", drw_epoch=1.0)


def test_classes_in_another_order_than_the_images_are_refused(tmp_path):
    splits = load_long_tailed("digits")
    counts = class_counts(splits["train"])
    sizes = {**SIZES, "intermediate_size": 128, "image_size": 8, "patch_size": 2}
    for other, message in (
        (dict(reversed(counts.items())), "class_counts: label 0 is '0' in the training images, and '9' in the model;"),
        (
            {f"digit {name}": count for name, count in counts.items()},
            "class names of the model and the training images",
        ),
    ):
        model = ViTForBalancedClassification(LivtConfig(**sizes, **config_for_classes(other)))
        dataset = ImageDataset(splits["train"], FinetuneTransform(8))
        options = {"train_dataset": dataset, "mean": (0.3,) * 3, "std": (0.4,) * 3}
        with pytest.raises(ValueError, match=message):
            RecipeTrainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"), **options)


def test_an_empty_validation_split_is_named(tmp_path):
    subject = balanced_trainer(tmp_path, 8, 1)
    empty = ImageDataset(load_long_tailed("digits")["validation"].select([]), EvalTransform(8, 1.0))
    with pytest.raises(ValueError, match="eval_dataset: the split to evaluate on is empty"):
        subject.evaluate(empty)
