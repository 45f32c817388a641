"""Evaluation, prediction, adjustment and the demo on a GPU give the numbers of a CPU, up to TF32 convolutions."""

import json
import shutil

import pytest
import torch
from PIL import Image

from helpers.cli import SIZES, words
from helpers.gpu import on_both
from helpers.images import COUNTS
from livt_hf import LivtConfig, ViTForBalancedClassification
from livt_hf.cli import main
from livt_hf.data.transforms import image_processor
from livt_hf.evaluation.evaluate import evaluate_checkpoint
from livt_hf.evaluation.predict import predict_images
from livt_hf.models.loading import load_classifier
from livt_hf.models.modeling_livt import config_for_classes
from livt_hf.reporting.provenance import hardware

pytestmark = pytest.mark.usefixtures("unrendered")

ROUNDING = 5e-3  # of probabilities: the patch embedding is a convolution, which cuDNN computes in TF32


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A saved classifier of ants and bees that is sure of its answers."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    model = ViTForBalancedClassification(LivtConfig(**SIZES, intermediate_size=64, **config_for_classes(COUNTS)))
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.save_pretrained(folder)
    image_processor(8, 0.875, (0.5,) * 3, (0.5,) * 3).save_pretrained(folder)
    return folder


@on_both
def test_evaluate(classifier, data, tmp_path, device):
    argv = words("evaluate", model=classifier, dataset=data, output_dir=tmp_path, num_workers=0)
    assert main(argv) == 0  # by default on the GPU
    default = json.loads((tmp_path / "results.json").read_text())
    assert default["hardware"] == json.loads(json.dumps(hardware(device)))
    given = evaluate_checkpoint(classifier, str(data), output_dir=tmp_path / "given", device=device)
    reference = evaluate_checkpoint(classifier, str(data), output_dir=tmp_path / "reference", device="cpu")
    for results in (default, given):
        assert results["accuracy"] == reference["accuracy"]
        assert results["ece"] == pytest.approx(reference["ece"], abs=100 * ROUNDING)


@on_both
def test_predict(classifier, data, tmp_path, device):
    argv = words("predict", model=classifier, device=device, output=tmp_path / "found.jsonl")
    assert main([*argv, str(data / "train")]) == 0
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    reference = list(predict_images(classifier, [entry["image"] for entry in found], device="cpu"))
    assert len(found) == sum(COUNTS.values())
    for one, two in zip(found, reference, strict=True):
        assert [entry["label"] for entry in one["predictions"]] == [entry["label"] for entry in two["predictions"]]
        scores, expected = ([entry["score"] for entry in entries["predictions"]] for entries in (one, two))
        assert scores == pytest.approx(expected, abs=ROUNDING)


@on_both
def test_adjust_fits_the_same_temperature(classifier, data, tmp_path, device):
    """On images of which the classifier gets all but one right."""
    files = sorted(map(str, (data / "train").glob("*/*.jpg")))
    for number, entry in enumerate(predict_images(classifier, files, device="cpu")):
        right, wrong = (prediction["label"] for prediction in entry["predictions"])
        for split in ("train", "validation"):
            folder = tmp_path / "images" / split / (right if number else wrong)
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(entry["image"], folder / f"{number}.jpg")
    temperatures = []
    for name in ("cpu", device):
        folder = tmp_path / f"adjusted-{len(temperatures)}"
        options = {"dataset": tmp_path / "images", "num_workers": 0, "device": name, "output_dir": folder}
        assert main(words("adjust", model=classifier, temperature="fit", **options)) == 0
        temperatures.append(json.loads((folder / "config.json").read_text())["adjustment"]["temperature"])
    assert temperatures[1] == pytest.approx(temperatures[0], rel=0.05)


@on_both
def test_demo(classifier, data, device):
    pytest.importorskip("gradio")
    from livt_hf.demo.app import Classifier

    with Image.open(data / "test" / "ant" / "0.jpg") as image:
        reference = Classifier(*load_classifier(classifier)).logits(image)
        model, processor = load_classifier(classifier)
        logits = Classifier(model.to(device), processor).logits(image)
    assert torch.tensor(logits).softmax(-1).tolist() == pytest.approx(
        torch.tensor(reference).softmax(-1).tolist(), abs=ROUNDING
    )
