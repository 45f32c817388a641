"""The metrics as `evaluate` modules: loaded from a folder offline, combined, distributed, and their Spaces."""

import functools
import importlib.util
import json
import sys
from pathlib import Path

import evaluate
import pytest
import yaml

from helpers.processes import exit_status, forked
from livt_hf import metrics

MODULES = Path(metrics.__file__).parent / "modules"
NAMES = ("calibration_error", "long_tail_accuracy")


def load(name, tmp_path):
    return evaluate.load(str(MODULES / name), cache_dir=str(tmp_path))


def test_evaluate_modules_give_the_same_numbers(reference, tmp_path):
    labels, predictions, confidences = (reference[name] for name in ("labels", "predictions", "confidences"))
    counts = [int(count) for count in reference["class_counts"]]
    accuracy = metrics.LongTailAccuracy(cache_dir=str(tmp_path))
    for part in (slice(0, 1000), slice(1000, None)):
        accuracy.add_batch(predictions=predictions[part], references=labels[part])
    assert accuracy.compute(class_counts=counts) == metrics.long_tail_accuracy(labels, predictions, counts)
    calibration = metrics.CalibrationError(cache_dir=str(tmp_path))
    assert calibration.compute(
        predictions=predictions, references=labels, confidences=confidences, num_bins=10
    ) == metrics.calibration_error(labels, predictions, confidences, 10)


def test_evaluate_modules_combine(reference, tmp_path):
    both = evaluate.combine(
        [metrics.LongTailAccuracy(cache_dir=str(tmp_path)), metrics.CalibrationError(cache_dir=str(tmp_path))]
    )
    result = both.compute(
        predictions=[0, 1, 1], references=[0, 1, 0], confidences=[1.0, 1.0, 0.6], class_counts={"a": 150, "b": 5}
    )
    assert result["many"] == 50.0
    assert result["few"] == 100.0
    assert result["ece"] == pytest.approx(20.0)


def test_long_tail_accuracy_metric_asks_for_class_counts(tmp_path):
    with pytest.raises(ValueError, match="class_counts"):
        metrics.LongTailAccuracy(cache_dir=str(tmp_path)).compute(predictions=[0], references=[0])


def test_modules_of_a_folder_combine(tmp_path):
    both = evaluate.combine([load(name, tmp_path) for name in NAMES])
    result = both.compute(
        predictions=[0, 1, 1], references=[0, 1, 0], confidences=[1.0, 1.0, 0.6], class_counts={"a": 150, "b": 5}
    )
    assert (result["many"], result["few"]) == (50.0, 100.0)
    assert result["ece"] == pytest.approx(20.0)
    assert result["mce"] == pytest.approx(60.0)


def test_two_processes_give_the_result_of_one(tmp_path):
    def work(process):
        options = {"num_process": 2, "process_id": process, "experiment_id": "two", "cache_dir": str(tmp_path)}
        metric = evaluate.load(str(MODULES / "long_tail_accuracy"), **options)
        labels, predictions = [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 0, 2]
        mine = slice(process, None, 2)
        metric.add_batch(predictions=predictions[mine], references=labels[mine])
        print(json.dumps(metric.compute(class_counts=[150, 50, 5])))

    logs = [tmp_path / f"log-{process}" for process in (0, 1)]
    children = [forked(functools.partial(work, process), log) for process, log in enumerate(logs)]
    assert [exit_status(child) for child in children] == [0, 0], [log.read_text() for log in logs]
    first, second = (json.loads(log.read_text().splitlines()[-1]) for log in logs)
    assert first == metrics.long_tail_accuracy([0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 0, 2], [150, 50, 5])
    assert second is None


@pytest.mark.parametrize("name", NAMES)
def test_a_module_is_a_space_with_a_card(name, tmp_path):
    _, front, card = (MODULES / name / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    front = yaml.safe_load(front)
    assert {"evaluate", "metric"} <= set(front["tags"])
    assert (front["sdk"], front["app_file"]) == ("gradio", "app.py")
    assert (MODULES / name / front["app_file"]).is_file()
    module = load(name, tmp_path)
    for feature in module.features:
        assert f"**{feature}**" in card


@pytest.mark.parametrize(
    ("name", "third", "expected"),
    [
        ("calibration_error", "[1.0, 1.0, 0.6]", {"mce": 60.0}),
        ("long_tail_accuracy", '{"a": 150, "b": 5}', {"few": 100.0}),
    ],
)
def test_the_app_of_a_space_computes(name, third, expected, monkeypatch):
    gradio = pytest.importorskip("gradio")
    monkeypatch.syspath_prepend(str(MODULES / name))
    monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location(f"{name}_app", MODULES / name / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    result = app.compute("[0, 1, 1]", "[0, 1, 0]", third)
    assert {key: pytest.approx(result[key]) for key in expected} == expected
    with pytest.raises(gradio.Error):
        app.compute("no list", "[0]", third)
