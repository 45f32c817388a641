"""predictions.parquet: round trip, order of a selection, no folders of this machine."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.images import write_images
from livt_hf.data import load_long_tailed
from livt_hf.evaluation.prediction_file import read_predictions, write_predictions
from livt_hf.files import PREDICTIONS_FILE
from livt_hf.hub.upload import PUBLISHED

NAMES = ["bee", "ant"]


@pytest.fixture
def written(tmp_path):
    write_images(tmp_path / "photos")
    split = load_long_tailed(tmp_path / "photos")["train"].select([6, 0, 3])
    predicted = {
        "labels": np.array([0, 1, 1]),
        "predictions": np.array([1, 1, 0]),
        "confidences": np.array([0.5, 0.75, 1.0]),
        "true_probabilities": np.array([0.25, 0.75, 0.0]),
    }
    write_predictions(tmp_path / "out", predicted, split, NAMES)
    return tmp_path / "out"


def test_rows_are_the_images_in_their_order_without_folders(written):
    assert pq.read_table(written / PREDICTIONS_FILE).to_pylist() == [
        {"image": "1.jpg", "label": "bee", "prediction": "ant", "confidence": 0.5, "true_probability": 0.25},
        {"image": "0.jpg", "label": "ant", "prediction": "ant", "confidence": 0.75, "true_probability": 0.75},
        {"image": "3.jpg", "label": "ant", "prediction": "bee", "confidence": 1.0, "true_probability": 0.0},
    ]
    assert [file.name for file in written.iterdir()] == [PREDICTIONS_FILE]
    assert str(written.parent).encode() not in (written / PREDICTIONS_FILE).read_bytes()
    assert not PUBLISHED.fullmatch(PREDICTIONS_FILE)  # it names test images and their labels


def test_labels_are_read_in_the_order_of_the_names_asked_for(written, tmp_path):
    found = read_predictions(written, ["ant", "bee"])
    assert found["labels"].tolist() == [1, 0, 0]
    assert found["predictions"].tolist() == [0, 0, 1]
    assert found["image"].tolist() == ["1.jpg", "0.jpg", "3.jpg"]
    assert found["confidences"].tolist() == [0.5, 0.75, 1.0]
    assert read_predictions(written, ["ant", "wasp"]) is None
    assert read_predictions(tmp_path, NAMES) is None
    (written / PREDICTIONS_FILE).write_bytes(b"PAR1")
    assert read_predictions(written, NAMES) is None
