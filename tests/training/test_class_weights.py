"""``--class_weights``: of the loss, by class name, balanced or from a file."""

import json

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from helpers.cli import run_stage, the_error
from helpers.training import QUIET, finetune_arguments
from livt_hf import ViTForBalancedClassification
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.losses import balanced_weights, build_loss
from livt_hf.training.classifier import class_weights
from livt_hf.training.finetuning import finetune

pytestmark = pytest.mark.usefixtures("unrendered")

COUNTS = {"ant": 60, "bee": 25, "cat": 10, "dog": 5}


def test_balanced_weights_are_those_of_scikit_learn():
    labels = [name for name, count in COUNTS.items() for _ in range(count)]
    expected = compute_class_weight("balanced", classes=np.array(list(COUNTS)), y=labels)
    assert class_weights("balanced", COUNTS) == pytest.approx(dict(zip(COUNTS, expected, strict=True)))
    assert balanced_weights([3, 1]).tolist() == [4 / 6, 2.0]


@pytest.mark.parametrize("name", ["ce", "bce", "bal_ce", "bal_bce"])
def test_weighted_losses_by_hand(name):
    logits, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 3, 2])
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0])
    pi = torch.tensor([0.6, 0.25, 0.1, 0.05])
    bias = {"bal_ce": pi.log(), "bal_bce": pi.log() - (1 - pi).log()}.get(name, torch.zeros(4))
    z, target = logits + bias, torch.eye(4)[labels]
    if name.endswith("bce"):
        terms = -(target * z.sigmoid().log() + (1 - target) * (1 - z.sigmoid()).log())
        expected = (terms * weights).sum() / 5
    else:
        expected = -(weights[labels] * z.log_softmax(-1)[range(5), labels]).sum() / weights[labels].sum()
    found = build_loss(name, COUNTS, class_weights=weights.tolist())(logits, labels)
    torch.testing.assert_close(found, expected)


def test_a_run_trains_with_the_weights_of_a_file_and_its_model_keeps_them(tmp_path):
    counts = class_counts(load_long_tailed("digits")["train"])
    weights = {name: 1.0 + int(name) for name in reversed(counts)}
    (tmp_path / "weights.json").write_text(json.dumps(weights))
    options = {"loss": "ce", "class_weights": str(tmp_path / "weights.json"), "max_steps": 1, "label_smoothing": 0.0}
    finetune(finetune_arguments(tmp_path / "out", **options), QUIET)
    model = ViTForBalancedClassification.from_pretrained(tmp_path / "out").eval()
    assert model.config.class_weights == weights
    pixels, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 9, 9, 5, 3])
    output = model(pixels, labels=labels)
    ordered = [weights[name] for name in counts]
    assert output.loss == build_loss("ce", counts, class_weights=ordered)(output.logits, labels)
    assert output.loss != build_loss("ce", counts)(output.logits, labels)


def test_weights_that_do_not_fit_are_one_line(tmp_path, capsys):
    file = tmp_path / "weights.json"

    def error(**options):
        return the_error(capsys, run_stage("finetune", "digits", tmp_path / "out", loss="ce", **options))

    assert f"class_weights: {str(tmp_path / 'nothing')!r} is neither 'balanced' nor a readable JSON file" in error(
        class_weights=tmp_path / "nothing"
    )
    file.write_text('{"0": 1.0, "cat": 2}')
    assert "class names of the training images and class_weights" in error(class_weights=file)
    file.write_text(json.dumps({str(number): -number for number in range(10)}))
    assert "gives class '0' the weight 0; write a number above 0" in error(class_weights=file)
    file.write_text("[1, 2]")
    assert "is neither 'balanced' nor a readable JSON file" in error(class_weights=file)
    message = the_error(
        capsys, run_stage("finetune", "digits", tmp_path / "out", loss="lade", class_weights="balanced")
    )
    assert message == "class_weights: lade takes none; leave it out, or use --loss ce, bce, bal_ce, bal_bce"
