"""Evaluation of saved checkpoints: results are those of a plain pipeline, and classes are matched by name."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from transformers import BeitConfig, BeitForImageClassification, BeitImageProcessor, pipeline

from helpers.results import GROUPS
from helpers.tiny_models import save_tiny
from livt_hf import ClassPrior, LivtConfig, LivtMAEForPreTraining, ViTForBalancedClassification
from livt_hf.class_names import label_names
from livt_hf.evaluation.evaluate import counts_by_model_name, evaluate_checkpoint, evaluate_model, measure
from livt_hf.metrics import calibration_error
from livt_hf.models.configuration_livt import LivtMAEConfig

COUNTS = {"cat": 50, "dog": 10, "emu": 3}
ONE_EACH = {"many": 1, "medium": 1, "few": 1}
TINY = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


def make_split(names, labels, seed=0):
    """Random photos of different shapes; the same pixels for the same seed."""
    rng = np.random.default_rng(seed)
    rows = []
    for position, label in enumerate(labels):
        pixels = rng.integers(0, 256, (20 + position, 31, 3), dtype=np.uint8)
        data = io.BytesIO()
        PILImage.fromarray(pixels).save(data, "PNG")
        rows.append({"image": {"bytes": data.getvalue(), "path": None}, "label": label})
    return Dataset.from_list(rows, features=Features({"image": Image(decode=False), "label": ClassLabel(names=names)}))


@pytest.fixture(scope="module")
def processor():
    return BeitImageProcessor(
        size={"shortest_edge": 18},
        do_center_crop=True,
        crop_size={"height": 16, "width": 16},
        do_convert_rgb=True,
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.4],
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = ViTForBalancedClassification(
        LivtConfig(
            **TINY, **label_names(list(COUNTS)), image_size=16, patch_size=4, class_counts=COUNTS, shot_groups=GROUPS
        )
    )
    torch.nn.init.normal_(model.classifier.weight, std=5.0)
    return model.eval()


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def split():
    return make_split(list(COUNTS), [0, 1, 2, 0, 1, 2, 2])


def test_numbers_are_those_of_a_plain_pipeline(folder, split, tmp_path):
    results = evaluate_checkpoint(folder, DatasetDict(test=split), output_dir=tmp_path, batch_size=3)
    classify = pipeline("image-classification", str(folder))
    assert type(classify.model) is BeitForImageClassification
    images = [PILImage.open(io.BytesIO(row["image"]["bytes"])) for row in split]
    best = [predictions[0] for predictions in classify(images)]
    names = list(COUNTS)
    right = [names[row["label"]] == prediction["label"] for row, prediction in zip(split, best, strict=True)]
    assert 0 < sum(right) < len(right)
    assert results["accuracy"] == pytest.approx(100 * np.mean(right))
    expected = calibration_error(
        split["label"],
        [names.index(prediction["label"]) for prediction in best],
        [prediction["score"] for prediction in best],
    )
    assert results["ece"] == pytest.approx(expected["ece"], abs=1e-4)
    assert results["mce"] == pytest.approx(expected["mce"], abs=1e-4)


def test_results_have_the_schema(folder, split, tmp_path):
    results = evaluate_checkpoint(folder, DatasetDict(test=split), output_dir=tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert " ".join(results) == (
        "model parameters trained_parameters adapter dataset loss tau pretrained adjustment seed command split "
        "class_counts_from tta images accuracy many medium few ece mce intervals top5 macro_accuracy worst_class "
        "harmonic_mean pdc groups group_confusion confusion confused_pairs hardest_images per_class class_counts "
        "test_counts predicted_counts reliability selective coverage versions hardware"
    )
    assert results["groups"] == {"definition": GROUPS, "sizes": ONE_EACH, "measured": ONE_EACH}
    assert list(results["per_class"]) == list(results["class_counts"]) == list(COUNTS)
    assert (results["loss"], results["tau"], results["images"]) == ("bal_bce", 1.0, 7)
    assert results["many"] == results["per_class"]["cat"]
    assert results["top5"] is None  # three classes
    assert results["test_counts"] == {"cat": 2, "dog": 2, "emu": 3}
    assert sum(results["predicted_counts"].values()) == 7
    assert sum(sum(row.values()) for row in results["group_confusion"].values()) == 7
    for name in ("class_frequency.png", "reliability.png"):
        with PILImage.open(tmp_path / name) as picture:
            assert picture.width > 500
        assert (tmp_path / name).stat().st_size < 60_000
    assert not list(tmp_path.glob("*.part"))
    rows = (tmp_path / "confusion.csv").read_text().splitlines()
    assert [sum(map(int, row.split(",")[1:])) for row in rows[1:]] == [2, 2, 3]  # images of each class
    assert (tmp_path / "per_class.csv").read_text().startswith("class,group,training_images,")


def test_without_a_test_split_the_validation_split_is_evaluated(folder, split, tmp_path, capsys):
    images = DatasetDict(train=split, validation=split.select([0, 1, 1]))
    results = evaluate_checkpoint(folder, images, output_dir=tmp_path)
    assert (results["split"], results["images"]) == ("validation", 3)
    assert capsys.readouterr().out == (
        "a DatasetDict has no test split: the validation split is used\n"
        "Classes without validation images: 1 of 3 (emu). Means over the classes of that split leave them out.\n"
    )
    with pytest.raises(ValueError, match="^split: a DatasetDict has no split 'test'; choose one of train, validation"):
        evaluate_checkpoint(folder, images, split="test", output_dir=tmp_path)
    with pytest.raises(ValueError, match="neither a test nor a validation split; give the --val_fraction or"):
        evaluate_checkpoint(folder, DatasetDict(train=split), output_dir=tmp_path)
    assert evaluate_checkpoint(folder, DatasetDict(train=split), split="train", output_dir=tmp_path)["images"] == 7


def test_means_and_groups_count_the_classes_that_were_measured(folder, split, tmp_path):
    images = DatasetDict(train=split, test=split.filter(lambda row: row["label"] != 2), validation=split)
    results = evaluate_checkpoint(folder, images, output_dir=tmp_path)
    assert results["few"] is None
    assert results["groups"]["measured"] == {"many": 1, "medium": 1, "few": 0}
    assert results["macro_accuracy"] == (results["per_class"]["cat"] + results["per_class"]["dog"]) / 2
    assert results["coverage"]["without_images"] == {"test": ["emu"]}
    report = (tmp_path / "report.md").read_text()
    assert "No class that is few-shot (fewer than 5 training images) has test images." in report
    assert "| 2 of 3 |  |" in report
    assert report.count("Classes without test images: 1 of 3 (emu).") == 1


def test_metrics_of_four_predictions():
    """Six classes, of which a is many-shot, b and c are few-shot; d, e and f have no test images."""
    predicted = {
        "labels": np.array([0, 0, 1, 2]),
        "predictions": np.array([0, 1, 1, 0]),
        "confidences": np.array([1.0, 0.5, 0.5, 0.9]),
        "true_probabilities": np.array([1.0, 0.25, 0.5, 0.05]),
        "in_top5": np.array([True, True, True, False]),
    }
    prior = ClassPrior({"a": 60, "b": 2, "c": 1, "d": 30, "e": 30, "f": 30})
    values = measure(predicted, prior, {"many": 40, "few": 3})
    assert {name: values[name] for name in ("accuracy", "many", "medium", "few", "top5")} == {
        "accuracy": 50.0,
        "many": 50.0,
        "medium": None,
        "few": 50.0,
        "top5": 75.0,
    }
    assert values["ece"] == pytest.approx(
        (90.0 + 0.0) / 4
    )  # bins 0.5: two images, 50 %; 0.9: one, wrong; 1: one, right
    assert [entry["index"] for entry in values["hardest_images"]] == [3]
    assert values["group_confusion"]["few"] == {"many": 1, "medium": 0, "few": 1}
    assert values["test_counts"] == {"a": 2, "b": 1, "c": 1, "d": 0, "e": 0, "f": 0}
    assert values["predicted_counts"] == {"a": 2, "b": 2, "c": 0, "d": 0, "e": 0, "f": 0}
    five = ClassPrior({"a": 60, "b": 2, "c": 1, "d": 30, "e": 30})
    assert measure(predicted, five)["top5"] is None


def test_classes_are_matched_by_name(model, processor, split):
    shuffled = ["emu", "cat", "dog"]
    other = make_split(shuffled, [shuffled.index(list(COUNTS)[label]) for label in split["label"]])
    expected, results = (evaluate_model(model, images, processor) for images in (split, other))
    assert results["per_class"] == expected["per_class"]
    assert results["accuracy"] == expected["accuracy"]


WNIDS = ["n01440764", "n02012849", "n03126707"]
FULL_NAMES = ["n03126707 crane", "n01440764 tench", "n02012849 crane"]


def test_counts_and_reconstructions_are_named_as_the_models_classes_that_match_by_id(processor, split, tmp_path):
    config = BeitConfig(**TINY, **label_names(FULL_NAMES), image_size=16, patch_size=4)
    BeitForImageClassification(config).save_pretrained(tmp_path / "m")
    LivtMAEForPreTraining(
        LivtMAEConfig(**TINY, image_size=16, patch_size=4, decoder_hidden_size=24, decoder_num_hidden_layers=1)
    ).save_pretrained(tmp_path / "mae")
    for name in ("m", "mae"):
        processor.save_pretrained(tmp_path / name)
    images = DatasetDict(train=make_split(WNIDS, [0] * 4 + [1] * 2 + [2]), test=make_split(WNIDS, split["label"]))
    out = tmp_path / "out"
    results = evaluate_checkpoint(tmp_path / "m", images, mae=tmp_path / "mae", output_dir=out)
    assert list(results["class_counts"].items()) == list(zip(FULL_NAMES, (1, 4, 2), strict=True))
    assert results["test_counts"] == dict(zip(FULL_NAMES, (3, 2, 2), strict=True))
    assert (out / "reconstructions.png").is_file()
    assert (out / "results.json").is_file()


def test_a_train_split_without_a_class_of_the_model_is_an_error_that_names_it():
    config = BeitConfig(**label_names(list(COUNTS)))
    with pytest.raises(ValueError, match="checkpoint and the train split differ; only in the checkpoint: 'emu'"):
        counts_by_model_name(make_split(["dog", "cat"], [0, 1]), config)


def test_different_classes_are_an_error_that_names_them(model, processor):
    other = make_split(["cat", "dog", "yak"], [0, 1, 2])
    with pytest.raises(ValueError, match=r"does not know 1 of its classes: yak; .* counterpart: emu"):
        evaluate_model(model, other, processor)


def test_a_plain_model_takes_its_counts_from_the_train_split(processor, split, tmp_path, capsys):
    torch.manual_seed(0)
    config = BeitConfig(**TINY, **label_names(list(COUNTS)), image_size=16, patch_size=4)
    BeitForImageClassification(config).save_pretrained(tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    train = make_split(list(COUNTS), [0] * 4 + [1] * 2 + [2])
    data = DatasetDict(train=train, test=split)
    results = evaluate_checkpoint(tmp_path / "m", data, output_dir=tmp_path / "out")
    assert results["class_counts"] == {"cat": 4, "dog": 2, "emu": 1}
    assert results["loss"] is None
    assert results["many"] is None
    assert results["groups"]["definition"] == {"many": 100, "few": 20, "by": "count"}
    assert "has no class counts" in capsys.readouterr().out
    report = (tmp_path / "out" / "report.md").read_text()
    assert "The checkpoint stores no class counts; those of the train split" in report
    with pytest.raises(ValueError, match="no train split to count"):
        evaluate_checkpoint(tmp_path / "m", DatasetDict(test=split), output_dir=tmp_path / "out")


def test_bad_arguments_are_named(folder, split, tmp_path):
    data = DatasetDict(test=split)
    with pytest.raises(ValueError, match="no split 'dev'; choose one of test"):
        evaluate_checkpoint(folder, data, split="dev", output_dir=tmp_path)
    with pytest.raises(
        ValueError, match="model: .* cannot be loaded as an image classifier: there is no such folder; give"
    ):
        evaluate_checkpoint(tmp_path / "missing", data, output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"the folder has no config\.json; give"):
        evaluate_checkpoint(tmp_path, data, output_dir=tmp_path)
    with pytest.raises(
        ValueError, match="mae: .* cannot be loaded as a masked autoencoder: it is a 'beit' model; give"
    ):
        evaluate_checkpoint(folder, data, mae=folder, output_dir=tmp_path)


def test_a_damaged_checkpoint_is_one_line(folder, split, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model: .* cannot be loaded as an image classifier") as error:
        evaluate_checkpoint(tmp_path / "m", DatasetDict(test=split), output_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_a_processor_that_always_normalizes_is_an_error(split, tmp_path):
    """That of timm's own checkpoints; `livt predict` can use it."""
    model = save_tiny("timm", tmp_path / "m", num_labels=3, id2label=dict(enumerate(COUNTS)))
    config = json.loads((model / "config.json").read_text())
    config["pretrained_cfg"] = {"input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3}
    (model / "config.json").write_text(json.dumps(config))
    data = DatasetDict(train=split, test=split)
    with pytest.raises(ValueError, match="^model: its TimmWrapperImageProcessor cannot leave out the normalization"):
        evaluate_checkpoint(model, data, output_dir=tmp_path)


def test_logits_that_are_not_finite_are_an_error(model, processor, split):
    broken = ViTForBalancedClassification(model.config)
    with torch.no_grad():
        broken.classifier.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        evaluate_model(broken, split, processor)


def test_a_report_with_reconstructions(folder, split, tmp_path):
    mae = LivtMAEForPreTraining(
        LivtMAEConfig(**TINY, image_size=16, patch_size=4, decoder_hidden_size=24, decoder_num_hidden_layers=1)
    )
    mae.save_pretrained(tmp_path / "mae")
    BeitImageProcessor.from_pretrained(folder).save_pretrained(tmp_path / "mae")
    evaluate_checkpoint(folder, DatasetDict(test=split), mae=tmp_path / "mae", output_dir=tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "![Masked reconstructions](reconstructions.png)" in report
    assert "75% of the patches are masked" in report
    assert "brightness and contrast of the masked patches are not predicted" in report
    with PILImage.open(tmp_path / "reconstructions.png") as picture:
        assert picture.width > 500
