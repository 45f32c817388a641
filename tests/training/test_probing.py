"""`--stage probe`: a native classifier whose logits are the probe's, with k-NN beside it; repeated commands."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification

from helpers.tiny_models import save_tiny
from helpers.training import finetune_arguments, log_lines, same_weights, weights_of
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.data.long_tail import dataset_labels
from livt_hf.evaluation.features import load_feature_model, split_features
from livt_hf.evaluation.knn import knn_predictions
from livt_hf.evaluation.predictions import split_logits
from livt_hf.evaluation.probe import fit_probe
from livt_hf.models.loading import load_classifier
from livt_hf.training.finetuning import finetune
from livt_hf.training.probing import knn_accuracies

pytestmark = pytest.mark.usefixtures("unrendered")

PROBE = {"stage": "probe", "loss": "bal_ce", "label_smoothing": 0.0, "drop_path": 0.1}


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """Start, output folder and results of a probe of a random ViT on the digits."""
    folder = tmp_path_factory.mktemp("probe")
    start = save_tiny("vit", folder / "start", num_labels=3)  # other classes
    options = {**PROBE, "pretrained": str(start), "image_size": None, "val_fraction": None}
    results = finetune(finetune_arguments(folder / "out", **options))
    return start, folder / "out", results, options


def test_the_logits_are_those_of_a_probe_on_the_features(probed):
    _, out, results, _ = probed
    model, processor = load_feature_model(out)
    splits = load_long_tailed("digits")
    counts = class_counts(splits)
    features = {name: split_features(model, split, processor, cache=False) for name, split in splits.items()}
    labels = dataset_labels(splits["train"])
    validation = features["validation"], dataset_labels(splits["validation"])
    layer = fit_probe(features["train"], labels, counts, validation=validation, device="cpu")
    logits, _ = split_logits(load_classifier(out)[0], splits["test"], processor, 64, 0, "cpu")
    with torch.no_grad():
        torch.testing.assert_close(layer(torch.from_numpy(features["test"])), logits, atol=1e-3, rtol=1e-3)
    accuracy = 100 * (logits.argmax(dim=1).numpy() == dataset_labels(splits["test"])).mean()
    assert results["accuracy"] == pytest.approx(accuracy)
    assert results["accuracy"] > 30  # chance is 10

    predictions = knn_predictions(
        *(torch.from_numpy(values) for values in (features["train"], labels, features["test"])), 10
    )
    knn = 100 * (predictions.numpy() == dataset_labels(splits["test"])).mean()
    assert results["knn"]["accuracy"] == pytest.approx(knn)
    assert set(results["knn"]) == {"accuracy", "many", "medium", "few", "neighbors", "temperature"}


def test_only_the_classifier_is_fitted_and_the_model_is_native(probed):
    start, out, results, _ = probed
    before, after = weights_of(start), weights_of(out)
    changed = (
        {name for name in before if not torch.equal(before[name], after[name].reshape(after[name].shape))}
        if before.keys() == after.keys()
        else None
    )
    assert changed == {"classifier.weight", "classifier.bias"}
    model = AutoModelForImageClassification.from_pretrained(out)
    assert type(model).__name__ == "ViTForImageClassification"
    assert results["trained_parameters"] == sum(p.numel() for p in model.classifier.parameters()) == 170
    assert list(results).index("trained_parameters") == list(results).index("parameters") + 1


def test_results_card_and_report_say_what_was_done(probed):
    _, out, results, _ = probed
    assert json.loads((out / "results.json").read_text())["knn"] == results["knn"]
    card = (out / "README.md").read_text()
    assert "the weights of start, frozen." in card
    assert "- Linear probe: only the linear classifier (170 parameters) was fitted, by L-BFGS" in card
    assert f"L2 strength {results['probe']['l2']:g}, chosen on the validation split." in card
    sentence = f"weighted k-NN (k = 20) on the same frozen features: accuracy {results['knn']['accuracy']:.1f} %"
    for file in ("README.md", "report.md", "report.html"):
        assert sentence in (out / file).read_text(), file
    assert "`epochs`" not in card
    assert "| `loss` | bal_ce |" in card
    lines = log_lines(out)
    assert [line["l2"] for line in lines] == sorted((line["l2"] for line in lines), reverse=True)
    assert results["probe"]["l2"] == min(lines, key=lambda line: line["held_out_loss"])["l2"]


def test_a_repeated_command_does_what_is_missing(probed, caplog, monkeypatch):
    _, out, results, options = probed
    caplog.set_level("INFO")
    monkeypatch.setattr("livt_hf.training.probing.split_features", None)  # nothing is fitted again
    arguments = finetune_arguments(out, **options)
    assert finetune(arguments)["accuracy"] == results["accuracy"]
    assert "nothing to do" in caplog.text
    card = (out / "README.md").read_text()
    (out / "README.md").unlink()
    (out / "results.json").unlink()
    assert finetune(arguments)["knn"] == results["knn"]
    assert (out / "README.md").read_text() == card


def test_another_loss_needs_another_folder_and_reads_the_features(probed, tmp_path, caplog):
    _, out, _, options = probed
    with pytest.raises(ValueError, match="contains the finished model of a run with different options: loss: bal_ce"):
        finetune(finetune_arguments(out, **{**options, "loss": "ce"}))
    caplog.set_level("INFO")
    finetune(finetune_arguments(tmp_path, **{**options, "loss": "ce", "class_weights": "balanced"}))
    assert json.loads((tmp_path / "config.json").read_text())["class_weights"]
    assert caplog.text.count(": read from ") == 3
    assert "computed in" not in caplog.text
    assert not same_weights(out, tmp_path)


def test_other_processes_leave_at_once(probed, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert finetune(finetune_arguments(tmp_path / "out", **probed[3])) is None
    assert not (tmp_path / "out" / "run.json").exists()


def test_knn_accuracy_is_that_of_the_groups():
    bank = np.eye(3, dtype=np.float32)
    found = knn_accuracies(
        bank, np.arange(3), bank[[0, 1, 2, 2]], np.array([0, 1, 1, 2]), {"a": 200, "b": 50, "c": 5}, {}
    )
    # each query finds itself: of class b one of two is right
    assert found == {"accuracy": 75.0, "many": 100.0, "medium": 50.0, "few": 100.0}


def test_a_probe_without_a_model_is_refused(tmp_path):
    args = finetune_arguments(tmp_path, stage="probe", loss="bal_ce", pretrained="none")
    with pytest.raises(ValueError, match="^stage: probe fits a classifier on the features of a model; name it with"):
        finetune(args)
