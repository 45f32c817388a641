"""iNaturalist 2018's 8,142 classes through data, config, loss, training step, evaluation and card."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import DatasetDict

from livt_hf import LivtConfig, ViTForBalancedClassification
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.data.table import image_column, image_dataset
from livt_hf.data.transforms import IMAGENET_MEAN, IMAGENET_STD, image_processor
from livt_hf.evaluation.evaluate import evaluate_checkpoint
from livt_hf.reporting.card import write_model_card

NUM_CLASSES = 8142
TRAIN_COUNTS = np.maximum(1000 * 0.99925 ** np.arange(NUM_CLASSES), 2).astype(int)  # 1,000 down to 2


def images(labels, names, identity):
    png = load_long_tailed("digits")["test"][0]["image"]["bytes"]
    return image_dataset(image_column(contents=[png] * len(labels)), labels, names, identity)


@pytest.fixture(scope="module")
def data_in_folder_order():
    """Classes sorted as in an image folder, "10" before "2"."""
    names = sorted((str(number) for number in range(NUM_CLASSES)), key=str)
    counts = [TRAIN_COUNTS[int(name)] for name in names]
    train = images(np.repeat(np.arange(NUM_CLASSES), counts), names, "train")
    test = images(np.arange(NUM_CLASSES), names, "test")
    return DatasetDict({"train": train, "test": test})


def test_8142_classes_end_to_end(data_in_folder_order, tmp_path):
    counts = class_counts(data_in_folder_order)
    assert list(counts)[:4] == ["0", "1", "10", "100"]
    by_number = {str(number): counts[str(number)] for number in range(NUM_CLASSES)}  # the official label order
    assert list(by_number.values()) == TRAIN_COUNTS.tolist()

    config = LivtConfig(
        image_size=8,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        id2label=dict(enumerate(by_number)),
        label2id={name: label for label, name in enumerate(by_number)},
        class_counts=by_number,
        loss="bal_bce",
    )
    torch.manual_seed(0)
    model = ViTForBalancedClassification(config)
    labels = torch.tensor([0, 8141])
    output = model(torch.rand(2, 3, 8, 8), labels=labels)
    prior = TRAIN_COUNTS / TRAIN_COUNTS.sum()
    shifted = output.logits.double() + torch.from_numpy(np.log(prior) - np.log1p(-prior))
    target = torch.nn.functional.one_hot(labels, NUM_CLASSES).double()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(shifted, target, reduction="none").sum(1).mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    output.loss.backward()
    assert math.isfinite(float(model.classifier.weight.grad.norm()))

    # A model that always predicts class "10", in the official order, evaluated on data in folder order.
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
        model.classifier.bias[config.label2id["10"]] = 5.0
    model.save_pretrained(tmp_path / "model")
    image_processor(8, 0.875, IMAGENET_MEAN, IMAGENET_STD).save_pretrained(tmp_path / "model")
    results = evaluate_checkpoint(
        tmp_path / "model", data_in_folder_order, output_dir=tmp_path / "model", batch_size=512, device="cpu"
    )
    assert results["per_class"]["10"] == 100
    assert results["accuracy"] == pytest.approx(100 / NUM_CLASSES)
    members = (TRAIN_COUNTS > 100).sum(), (TRAIN_COUNTS < 20).sum()
    assert results["many"] == pytest.approx(100 / members[0])
    assert results["few"] == 0

    card = write_model_card(tmp_path / "model", results).read_text()
    assert "8,142" in card
    saved = json.loads((tmp_path / "model/config.json").read_text())
    assert saved["class_counts"] == by_number
    assert len(card) < 2_000_000
