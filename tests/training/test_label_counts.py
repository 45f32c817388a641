"""Class counts of what a Trainer trains on: label columns of any kind, and torch datasets."""

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from torch.utils.data import Subset, TensorDataset
from torchvision import datasets as vision

from livt_hf.training.label_counts import count_labels

NAMES = ["ant", "bee", "cat"]
COUNTS = {"ant": 1, "bee": 3, "cat": 2}
LABELS = [1, 0, 2, 1, 1, 2]
PLACEHOLDERS = ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.fixture
def named():
    features = Features({"number": Value("int64"), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"number": [*range(6)], "label": LABELS}, features)


def test_a_column_of_class_labels(named):
    assert count_labels(named) == count_labels(named, NAMES) == count_labels(named, PLACEHOLDERS) == COUNTS
    assert count_labels(named.with_transform(lambda rows: {"other": rows["number"]}), NAMES) == COUNTS
    assert count_labels(named.with_format("torch"), NAMES) == COUNTS
    assert count_labels(named.rename_column("label", "species"), NAMES) == COUNTS
    assert count_labels(named.rename_column("label", "y"), NAMES, ["y"]) == COUNTS
    assert count_labels(named.shuffle(seed=1), NAMES) == COUNTS
    assert count_labels(named.select([0, 1, 3]), NAMES) == {"ant": 1, "bee": 2, "cat": 0}


def test_columns_of_integers_and_of_names():
    numbers = Dataset.from_dict({"labels": LABELS})
    assert count_labels(numbers) == {"0": 1, "1": 3, "2": 2}
    assert count_labels(numbers, NAMES) == COUNTS
    four = [*PLACEHOLDERS, "LABEL_3"]
    assert count_labels(numbers, four) == dict(zip(four, (1, 3, 2, 0), strict=True))
    assert count_labels(Dataset.from_dict({"label": [NAMES[label] for label in LABELS]}), NAMES) == COUNTS


def test_torch_datasets(tmp_path):
    for name, count in (("b", 2), ("a", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            PIL.Image.new("RGB", (4, 4)).save(tmp_path / name / f"{number}.png")
    folder = vision.ImageFolder(tmp_path)
    assert count_labels(folder, PLACEHOLDERS[:2]) == {"a": 1, "b": 2}
    assert count_labels(Subset(folder, [1, 0]), PLACEHOLDERS[:2]) == {"a": 1, "b": 1}
    own = TensorDataset(torch.zeros(6, 1))
    assert count_labels(own, NAMES) is None
    own.labels = torch.tensor(LABELS)
    assert count_labels(own, NAMES) == COUNTS


def test_what_has_no_countable_labels(named):
    assert count_labels(named.remove_columns("label")) is None
    assert count_labels(named.to_iterable_dataset()) is None
    assert count_labels(Dataset.from_dict({"labels": np.eye(3).tolist()})) is None  # soft
