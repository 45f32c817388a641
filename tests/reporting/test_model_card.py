"""The whole text of a rendered card, and the metadata that the Hub reads from it."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from helpers.paths import FIXTURES
from livt_hf.config.arguments import FinetuneArguments
from livt_hf.config.parsing import parse_arguments
from livt_hf.reporting.card import ensure_card, write_model_card
from livt_hf.training.record import RunOptions

FIXTURE = FIXTURES / "card.md"
COUNTS = {
    "a|b": 120,
    "`<script>alert(1)</script>`": 77,
    "new\nline": 50,
    "emoji 😀": 32,
    "_under_ a_b": 20,
    "five": 13,
    "six": 8,
    "seven": 5,
    "eight": 3,
    "[link](http://x)": 2,
    "last": 2,
}


@pytest.fixture
def results():
    accuracy = [100.0, 97.5, 95.0, 90.0, 80.0, 70.0, 60.0, 50.0, 40.0, None, 35.0]
    return {
        "model": "out/livt-digits",
        "parameters": 1234567,
        "dataset": "/home/someone/photos of | things",
        "split": "test",
        "loss": "bal_bce",
        "tau": 1.0,
        "pretrained": "/home/someone/out/mae",
        "seed": 0,
        "images": 400,
        "accuracy": 75.25,
        "many": 97.5,
        "medium": None,
        "few": 51.04,
        "ece": 8.123,
        "mce": 21.0,
        "intervals": {
            "accuracy": [71.0, 79.5],
            "macro_accuracy": [66.25, 77.0],
            "many": [94.15, 100.0],
            "medium": None,
            "few": [44.0, 58.12],
            "ece": [5.0, 12.0],
            "method": {"level": 95.0, "resamples": 1000, "seed": 0, "stratified_by": "class", "exact": []},
        },
        "groups": {
            "definition": {"many": 40, "few": 14, "by": "count"},
            "sizes": {"many": 3, "medium": 2, "few": 6},
        },
        "per_class": dict(zip(COUNTS, accuracy, strict=True)),
        "class_counts": COUNTS,
        "top5": 95.5,
        "macro_accuracy": 71.75,
        "worst_class": 35.0,
        "harmonic_mean": 63.9,
        "test_counts": dict.fromkeys(COUNTS, 40) | {"[link](http://x)": 0},
        "coverage": {
            "classes": 11,
            "without_images": {"test": ["[link](http://x)"]},
            "single_training_image": ["new\nline"],
            "left_out": {},
        },
        "reliability": [{}] * 15,
        "command": "livt evaluate --model out/livt-digits --dataset digits",
        "versions": {"livt_hf": "0.1.0", "torch": "2.15.0"},
        "hardware": {"device": "cpu", "cpu": "Chip", "cores": 2},
    }


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "livt-digits"
    folder.mkdir()
    config = {"image_size": 32, "patch_size": 4, "hidden_size": 96, "num_hidden_layers": 6, "use_mean_pooling": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_whole_card(folder, results):
    (folder / "class_frequency.png").touch()
    (folder / "examples").mkdir()
    (folder / "examples" / "few shot.png").touch()
    args, _ = parse_arguments(FinetuneArguments, ["--dataset", "/home/someone/a|b", "--pretrained", "../mae"])
    record = RunOptions(args).record(400) | {"versions": {"torch": "2.15.0", "transformers": "5.23.0"}}
    (folder / "run.json").write_text(json.dumps(record))
    path = write_model_card(folder, results, repo_id="org/livt-digits", sections={"Other | losses": "A *table*."})
    assert path == folder / "README.md"
    assert path.read_text(encoding="utf-8") == FIXTURE.read_text(encoding="utf-8")


def test_whole_card_without_an_evaluation(folder, results):
    kept = "model parameters dataset loss tau pretrained seed class_counts command versions hardware"
    unevaluated = {name: results[name] for name in kept.split()}
    unevaluated["coverage"] = {**results["coverage"], "without_images": {}}
    text = write_model_card(folder, unevaluated).read_text(encoding="utf-8")
    assert text == (FIXTURES / "unevaluated_card.md").read_text(encoding="utf-8")
    assert ModelCard(text).data.eval_results is None


def test_test_time_ensembling_is_named_beside_the_figures_and_in_the_metadata(folder, results):
    card = ModelCard.load(write_model_card(folder, results | {"tta": "flip"}))
    assert "Test-time ensembling (flip): mean of the probabilities over each image and its mirror image." in card.text
    names = {result.metric_type: result.metric_name for result in card.data.eval_results}
    assert names["accuracy"] == "Accuracy (%), test-time ensembling flip"
    plain = {name: value for name, value in results.items() if name != "intervals"}  # of an earlier version
    text = write_model_card(folder, plain).read_text()
    assert "| All images | **75.2** | 10 of 11 |" in text
    assert "ensembling" not in text


@pytest.mark.parametrize(("largest", "words"), [(20, "11 classes of very unequal size: a"), (19, "11 classes: a")])
def test_classes_are_called_unequal_where_they_are(folder, results, largest, words):
    counts = dict.fromkeys(COUNTS, 2) | {"last": largest}
    text = write_model_card(folder, results | {"class_counts": counts}).read_text()
    assert f"An image classifier for {words} vision transformer" in text


def test_whole_plain_card(folder):
    ensure_card(folder, "org/a|b")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card == (FIXTURES / "plain_card.md").read_text(encoding="utf-8")


def test_metadata_for_the_hub(folder, results):
    card = ModelCard.load(write_model_card(folder, results, dataset_id="org/photos"))
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.library_name == "transformers"
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["org/photos"]
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured == {
        "accuracy": 75.25,
        "many_shot_accuracy": 97.5,
        "few_shot_accuracy": 51.04,  # the medium-shot group has no tested class: left out
        "ece": 8.12,
        "mce": 21.0,
    }
    assert {result.dataset_type for result in card.data.eval_results} == {"org/photos"}


def test_base_model_and_license_are_named(folder, results):
    card = ModelCard.load(write_model_card(folder, {**results, "pretrained": "org/mae"}, license="mit"))
    assert (card.data.base_model, card.data.license) == ("org/mae", "mit")
    assert ModelCard.load(write_model_card(folder, results)).data.base_model is None  # a folder of this machine


def test_the_name_is_the_folders_where_there_is_no_repository(folder, results):
    text = write_model_card(folder, results).read_text()
    assert "\n# livt-digits\n" in text
    assert 'pipeline("image-classification", "livt-digits")' in text
    assert "someone" not in text


def test_names_from_data_cannot_change_the_card(folder, results):
    results["dataset"] = "---\nlicense: mit\n<img src=x>"
    text = write_model_card(folder, results).read_text()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "apache-2.0"
    assert "<script" not in body
    assert "<img" not in body
    table = body[body.index("| Class |") :].split("\n\n")[0].splitlines()
    assert len(table) == 2 + 10
    assert {line.count("|") for line in table} == {4}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "assume a uniform class prior"),
        ({"tau": 0.5}, "corrects for the class prior of the training images in part at most"),
        ({"tau": 1.5}, "over-predicts the classes that were rare"),
        ({"loss": "bce"}, "corrects for the class prior of the training images in part at most"),
        ({"loss": "bce"}, "Loss: binary cross-entropy (BCE).\n"),
        ({"pretrained": None}, "random weights, without masked pretraining"),
        ({"pretrained": None}, "as a baseline for the LiVT method"),
    ],
)
def test_the_text_follows_how_the_model_was_trained(folder, results, changes, expected):
    assert expected in write_model_card(folder, {**results, **changes}).read_text()


UNDO = "undo the adjustment first, as shown above"


@pytest.mark.parametrize(
    ("loss", "adjustment", "named", "expected"),
    [
        ("ce", {"target_prior": "uniform"}, "target prior uniform", f"a uniform class prior. .*{UNDO}"),
        ("bal_bce", {"target_prior": "train"}, "target prior train", f"prior of the training images. .*: {UNDO}"),
        (
            "bal_bce",
            {"target_prior": {"a|b": 3, "six": 1}, "temperature": 1.25},
            "target prior from a file, temperature 1.25",
            f"from a&#124;b \\(75 %\\) to six \\(25 %\\). .*{UNDO}",
        ),
        ("bal_bce", {"temperature": 2.0}, "temperature 2", f"a uniform class prior. .*{UNDO}"),
        ("ce", {"tau_norm": 1.0}, "tau-norm 1", "assume is unknown"),
    ],
)
@pytest.mark.parametrize("model_type", ["beit", "resnet"])
def test_the_text_follows_how_the_model_was_adjusted(folder, results, loss, adjustment, named, expected, model_type):
    config = json.loads((folder / "config.json").read_text())
    adjustment = {"target_prior": None, "temperature": 1.0, "tau_norm": None, "layer": "classifier", **adjustment}
    config |= {"adjustment": adjustment, "model_type": model_type, "architectures": ["Some"]}
    (folder / "config.json").write_text(json.dumps(config))
    text = write_model_card(folder, {**results, "loss": loss}).read_text()
    assert f"- Adjusted post hoc with `livt adjust`: {named}.\n" in text
    assert len(re.findall(rf"\n- .*{expected}", text)) == 1
    assert re.findall("livt adjust --.*", text) == ["livt adjust --model FOLDER --undo --output_dir original"]
    limitations = text[text.index("## Limitations") :]
    assert len(re.findall("assume a uniform|-predict|is unknown|from .* to ", limitations)) == 1
