"""The whole cards of an ONNX and of a timm export; license and results are those of the exported model."""

import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard

from helpers.paths import FIXTURES
from helpers.results import NAUGHTY, naughty_results
from livt_hf.reporting.export_card import export_card

STEPS = {
    "convert": "RGB",
    "resize_shortest_edge": 36,
    "resize": None,
    "interpolation": "bicubic",
    "center_crop": {"height": 32, "width": 32},
    "rescale": 1 / 255,
    "mean": [0.466, 0.471, 0.38],
    "std": [0.195, 0.194, 0.192],
    "layout": "NCHW",
}
CHECK = {"images": 64, "dataset": "photos", "split": "test", "largest_difference": 1.234e-6}


@pytest.fixture
def classifier():
    config = SimpleNamespace(num_labels=len(NAUGHTY), id2label=dict(enumerate(NAUGHTY)))
    return SimpleNamespace(config=config, parameters=lambda: [torch.zeros(1200, 2)])


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model|a"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n")
    return folder


def test_whole_onnx_card(model, classifier, tmp_path):
    (model / "evaluation").mkdir()
    (model / "evaluation" / "results.json").write_text(json.dumps(naughty_results()))
    text = export_card("onnx", model, classifier, tmp_path / "out", CHECK, STEPS)
    assert text == (FIXTURES / "onnx_card.md").read_text(encoding="utf-8")
    assert ModelCard(text).data.license == "mit"


def test_whole_timm_card(model, classifier, tmp_path):
    (model / "README.md").unlink()
    text = export_card("timm", model, classifier, tmp_path / "out", {"largest_difference": 1.234e-6})
    assert text == (FIXTURES / "timm_card.md").read_text(encoding="utf-8")
    assert ModelCard(text).data.license == "apache-2.0"


def test_a_processor_that_resizes_both_sides_and_a_model_of_the_hub(classifier, tmp_path):
    steps = {**STEPS, "resize_shortest_edge": None, "resize": {"height": 20, "width": 30}, "center_crop": None}
    check = {**CHECK, "images": 1, "split": None, "dataset": "random noise"}
    text = export_card("onnx", "org/model", classifier, tmp_path / "out", check, steps)
    assert "image = image.resize((30, 20), Image.Resampling.BICUBIC)\npixels = " in text
    assert "on 1 image of random noise: the logits" in text
    assert ModelCard(text).data.base_model == "org/model"
