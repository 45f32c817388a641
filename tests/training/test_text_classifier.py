"""--classifier_init text: accuracies in the log, the initialized weights, and the runs that do without it."""

import io
import json

import PIL.Image
import pytest
import torch
from datasets import DatasetDict
from transformers import AutoModelForImageClassification, CLIPModel, SiglipModel

from helpers.tiny_towers import save_tokenizer, save_tower
from helpers.training import QUIET, finetune_arguments, stop_at
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.data.long_tail import dataset_labels
from livt_hf.data.transforms import image_processor
from livt_hf.metrics import long_tail_accuracy
from livt_hf.models.loading import classifier_layers
from livt_hf.models.transfer import load_pretrained_classifier
from livt_hf.models.zero_shot import ZeroShot, load_tokenizer
from livt_hf.training import classifier_init
from livt_hf.training.data import LoadedImages
from livt_hf.training.finetuning import finetune
from livt_hf.training.text_classifier import init_from_text

pytestmark = pytest.mark.usefixtures("unrendered")

MEAN, STD = [0.5] * 3, [0.25] * 3
PROCESSOR = image_processor(8, 1.0, MEAN, STD)
OPTIONS = {
    "image_size": None,
    "max_steps": 4,
    "batch_size": 16,
    "save_every": 2,
    "logging_steps": 1,
    "classifier_init": "text",
    "prompt": ["a photo of {}."],
    "mean": MEAN,
    "std": STD,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contrastive")
    return {
        name: str(save_tokenizer(save_tower(name, folder / name, logit_scale_init_value=3.0), name))
        for name in ("clip", "siglip")
    }


@pytest.fixture(scope="module")
def digits():
    return load_long_tailed("digits", imbalance_factor=20)


def loaded(splits: DatasetDict) -> LoadedImages:
    return LoadedImages(splits, class_counts(splits["train"]), None)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_zero_shot_accuracy_is_that_of_transformers(name, checkpoints, digits, tmp_path, caplog):
    """Whole model, tokenizer and image processor of transformers on the validation images, image by image."""
    caplog.set_level("INFO")
    counts = class_counts(digits["train"])
    model = load_pretrained_classifier(checkpoints[name], counts)
    args = finetune_arguments(tmp_path, pretrained=checkpoints[name], **OPTIONS)
    results = init_from_text(args, model, loaded(digits), PROCESSOR)
    whole = {"clip": CLIPModel, "siglip": SiglipModel}[name].from_pretrained(checkpoints[name]).eval()
    padding = {"padding": True} if name == "clip" else {"padding": "max_length", "max_length": 16}
    texts = load_tokenizer(checkpoints[name])([f"a photo of {digit}." for digit in range(10)], **padding)
    predictions = []
    for image in digits["validation"]["image"]:
        decoded = PIL.Image.open(io.BytesIO(image["bytes"])).convert("RGB")
        pixels = PROCESSOR(decoded, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            output = whole(pixel_values=pixels, input_ids=torch.tensor(texts["input_ids"]))
        predictions.append(output.logits_per_image.argmax().item())
    assert len(set(predictions)) > 1
    expected = long_tail_accuracy(dataset_labels(digits["validation"]), predictions, counts, args.shot_groups())
    for key in ("accuracy", "many", "medium", "few"):
        assert results["zero-shot"][key] == expected[key]
    assert f"zero-shot accuracy, before training, on the validation split: {expected['accuracy']:.1f} %" in caplog.text
    after = results["initialized"]["accuracy"]
    assert f"initialized from it, before training, on the validation split: {after:.1f} %" in caplog.text


def test_features_that_determine_the_embedding_reproduce_zero_shot(checkpoints, digits, tmp_path, monkeypatch):
    counts = class_counts(digits["train"])
    model = load_pretrained_classifier(checkpoints["clip"], counts)
    twin = load_pretrained_classifier(checkpoints["clip"], counts)
    (layer,) = classifier_layers(twin).values()
    with torch.no_grad():  # the twin's logits are the embedding
        layer.weight.normal_(generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(ZeroShot, "embed", lambda self, pixels: twin.eval()(pixels).logits.detach()[:, :8])
    args = finetune_arguments(tmp_path, pretrained=checkpoints["clip"], **OPTIONS)
    results = init_from_text(args, model, loaded(digits), PROCESSOR)
    assert results["initialized"] == results["zero-shot"]
    assert len(set(results["zero-shot"]["per_class"].values())) > 1
    assert model.training == load_pretrained_classifier(checkpoints["clip"], counts).training


def test_fine_tuning_starts_from_it_and_a_resumed_run_does_not_repeat_it(checkpoints, tmp_path, monkeypatch, capsys):
    calls = []

    def once(*args):
        calls.append(args)
        return init_from_text(*args)

    monkeypatch.setattr(classifier_init, "init_from_text", once)
    # With a learning rate of almost 0 and an average of the weights, the trained classifier is the initial one
    options = {**OPTIONS, "pretrained": checkpoints["clip"], "base_lr": 1e-12, "min_lr": 0.0, "ema": 0.5}
    stop_at(3, monkeypatch)
    assert finetune(finetune_arguments(tmp_path, **options), QUIET) is None
    monkeypatch.undo()
    monkeypatch.setattr(classifier_init, "init_from_text", once)
    finetune(finetune_arguments(tmp_path, **options), QUIET)
    assert len(calls) == 1
    log = capsys.readouterr().out
    assert log.count("zero-shot accuracy, before training, on the validation split") == 1
    trained = AutoModelForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(trained.classifier.weight, calls[0][1].classifier.weight, rtol=1e-4, atol=1e-5)
    assert trained.classifier.weight.abs().max() > 0.1
    assert json.loads((tmp_path / "run.json").read_text())["arguments"]["prompt"] == ["a photo of {}."]


def test_what_cannot_be_is_named(checkpoints, tmp_path):
    with pytest.raises(ValueError, match="^prompt: 'a photo' has no {} for the name of the class"):
        finetune_arguments(tmp_path, classifier_init="text", prompt=["a photo"], pretrained="x")
    with pytest.raises(ValueError, match="^prompt: '' has no {}"):
        finetune_arguments(tmp_path, prompt=[])
    with pytest.raises(
        ValueError, match="^classifier_init: text is for a CLIP or SigLIP with its text tower; name one"
    ):
        finetune_arguments(tmp_path, classifier_init="text")
    args = finetune_arguments(tmp_path, **OPTIONS, pretrained=checkpoints["clip"])
    with pytest.raises(ValueError, match="^classifier_init: .*; leave out --streaming"):
        init_from_text(args, None, LoadedImages(DatasetDict(), {"a": 1}, None), PROCESSOR)
