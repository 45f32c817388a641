"""`compute_loss_func` in a stock Trainer: the same gradients however the batch is split."""

import json
from types import SimpleNamespace

import pytest
import torch

from helpers.gradients import (
    COUNTS,
    KINDS,
    EightImages,
    gradients_of_a_step,
    gradients_of_the_batch,
    stock_trainer,
)
from helpers.paths import FIXTURES
from helpers.tiny_models import FAMILIES, tiny
from livt_hf.losses import LOSS_NAMES, build_loss, compute_loss_func

REFERENCE = json.loads((FIXTURES / "losses.json").read_text())
BATCH_WIDE = ("cb_ce", "lade")  # with hard labels they look at a (micro-)batch as a whole
PER_IMAGE = [
    (name, kind) for name in LOSS_NAMES for kind in KINDS if name != "lade" and (name, kind) != ("cb_ce", "hard")
]


def tiny_of(family):
    drop_path = {"drop_path_rate": 0.0} if family in ("swin", "beit") else {}
    return tiny(family, num_labels=4, **drop_path)


def assert_same(actual, expected):
    largest = max(g.abs().max() for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-5, atol=1e-6 * largest.item(), msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (4, 2), (2, 4), (3, 3)])
def test_gradients_do_not_depend_on_the_split(tmp_path, kind, batch_size, accumulation):
    """Also where the last micro-batch is smaller: 3 + 3 + 2 images."""
    trainer = stock_trainer(tmp_path, compute_loss_func("bal_bce", COUNTS), kind, batch_size, accumulation)
    assert_same(gradients_of_a_step(trainer), gradients_of_the_batch("bal_bce", kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_every_family_under_accumulation_and_two_processes(tmp_path, family, kind, monkeypatch):
    """As the README states: 4 x 2 accumulated, and 2 processes x 4, have the gradients of the batch of 8."""
    expected = gradients_of_the_batch("bal_bce", kind, tiny_of(family))
    func = compute_loss_func("bal_bce", COUNTS)
    assert_same(gradients_of_a_step(stock_trainer(tmp_path, func, kind, 4, 2, tiny_of(family))), expected)
    trainer, data = stock_trainer(tmp_path, func, kind, model=tiny_of(family)), EightImages(kind)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    for half in (slice(0, 4), slice(4, 8)):
        inputs = {"pixel_values": data.pixels[half], "labels": data.labels[half]}
        trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(data.labels.numel())).backward()
    used = {name: p.grad / 2 for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert_same(used, {name: expected[name] for name in used})


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_same_gradients(tmp_path, kind, monkeypatch):
    """Each process calls Trainer's compute_loss on its half, with the count of both; DDP averages the gradients."""
    trainer = stock_trainer(tmp_path, compute_loss_func("bal_bce", COUNTS), kind)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    data = EightImages(kind)
    for half in (slice(0, 4), slice(4, 8)):
        inputs = {"pixel_values": data.pixels[half], "labels": data.labels[half]}
        trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(data.labels.numel())).backward()
    averaged = {name: p.grad / 2 for name, p in trainer.model.named_parameters()}
    assert_same(averaged, gradients_of_the_batch("bal_bce", kind))


@pytest.mark.parametrize(("name", "kind"), PER_IMAGE)
def test_every_per_image_loss_adds_up_over_micro_batches(name, kind):
    data, logits = EightImages(kind), torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    func, items = compute_loss_func(name, COUNTS), torch.tensor(data.labels.numel())
    parts = [func({"logits": logits[s]}, data.labels[s], items) for s in (slice(0, 3), slice(3, 8))]
    assert sum(parts).item() == pytest.approx(build_loss(name, COUNTS)(logits, data.labels).item(), rel=1e-6)


@pytest.mark.parametrize("name", BATCH_WIDE)
def test_losses_over_the_batch_average_their_micro_batches(name):
    """Losses that depend on the whole batch are averaged over micro-batches, as the docstring states."""
    data, logits = EightImages("hard"), torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    func, loss = compute_loss_func(name, COUNTS), build_loss(name, COUNTS)
    halves = (slice(0, 4), slice(4, 8))
    parts = [func({"logits": logits[s]}, data.labels[s], torch.tensor(8)) for s in halves]
    expected = [loss(logits[s], data.labels[s]) / 2 for s in halves]
    assert sum(parts).item() == pytest.approx(sum(expected).item(), rel=1e-6)


def test_data_parallel_passes_one_count_per_gpu():
    """Trainer passes the count repeated, multiplies the loss by the number of GPUs and takes the mean."""
    logits, labels = torch.tensor(REFERENCE["logits"]), torch.tensor(REFERENCE["labels"])
    counts = torch.tensor(len(labels)).unsqueeze(0).expand(2, -1)
    value = compute_loss_func("bal_bce", REFERENCE["class_counts"])({"logits": logits}, labels, counts)
    value *= 2
    assert value.mean() == build_loss("bal_bce", REFERENCE["class_counts"])(logits, labels)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: SimpleNamespace(logits=z),
        lambda z: {"logits": z},
        lambda z: (z, "hidden states"),
        lambda z: [z],
        lambda z: z,
    ],
    ids=["output", "dict", "tuple", "list", "tensor"],
)
def test_every_form_of_a_model_output(wrap):
    logits, soft = torch.tensor(REFERENCE["logits"]), torch.tensor(REFERENCE["soft_targets"])
    func = compute_loss_func("bal_ce", REFERENCE["class_counts"], tau=1.05)
    expected = pytest.approx(REFERENCE["values"]["bal_ce_soft_tau1.05"], rel=1e-6)
    assert func(wrap(logits), soft).item() == expected
    assert func(wrap(logits), soft, num_items_in_batch=soft.numel()).item() == expected


def test_options_and_smoothing_reach_the_loss():
    logits, labels = torch.tensor(REFERENCE["logits"]), torch.tensor(REFERENCE["labels"])
    func = compute_loss_func("bal_bce", REFERENCE["class_counts"], label_smoothing=0.1)
    expected = REFERENCE["values"]["bal_bce_hard_smoothing0.1_tau1"]
    assert func((logits,), labels).item() == pytest.approx(expected, rel=1e-6)
    func = compute_loss_func("focal", REFERENCE["class_counts"], gamma=0.0)
    assert func((logits,), labels).item() == pytest.approx(REFERENCE["values"]["ce_hard"], rel=1e-6)


def test_missing_labels_and_logits_are_named():
    func = compute_loss_func("ce", COUNTS)
    with pytest.raises(ValueError, match="labels: the batch has none"):
        func({"logits": torch.zeros(1, 4)}, None)
    with pytest.raises(ValueError, match="logits: the model returned none, only last_hidden_state"):
        func({"last_hidden_state": torch.zeros(1, 4)}, torch.tensor([0]))
