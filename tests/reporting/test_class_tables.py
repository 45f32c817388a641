"""Precision, recall and F1 of each class, and the confusion matrix, against hand-computed numbers."""

import csv

import pytest
from matplotlib.patches import Rectangle

from livt_hf.metrics import class_confusion, long_tail_accuracy
from livt_hf.reporting.class_tables import class_results, confusion_csv, confusion_figure, per_class_csv

COUNTS = {"rare": 3, "=common": 50, "untested": 10}
LABELS, PREDICTIONS = [0, 0, 0, 1, 1, 1, 1], [0, 1, 2, 1, 1, 1, 0]


@pytest.fixture
def results():
    names = list(COUNTS)
    return {
        **long_tail_accuracy(LABELS, PREDICTIONS, COUNTS),
        "class_counts": COUNTS,
        "confusion": class_confusion(LABELS, PREDICTIONS, COUNTS),
        **{
            key: {name: labels.count(label) for label, name in enumerate(names)}
            for key, labels in (("test_counts", LABELS), ("predicted_counts", PREDICTIONS))
        },
    }


def test_precision_recall_and_f1_by_hand(results):
    found = {of.name: (of.group, of.recall, of.precision, of.f1) for of in class_results(results)}
    assert list(found) == ["=common", "untested", "rare"]
    assert found == {
        "=common": ("medium", 75.0, 75.0, 75.0),
        "untested": ("few", None, 0.0, None),
        "rare": ("few", pytest.approx(100 / 3), 50.0, 40.0),  # 2 x 1/3 x 1/2 / (1/3 + 1/2)
    }


def test_files_are_ordered_by_size_and_start_no_formula(results):
    assert per_class_csv(results) == (
        "class,group,training_images,test_images,predicted,accuracy,precision,f1\n"
        "'=common,medium,50,4,4,75.0,75.0,75.0\n"
        "untested,few,10,0,1,,0.0,\n"
        "rare,few,3,3,2,33.3333,50.0,40.0\n"
    )
    assert list(csv.reader(confusion_csv(results).splitlines())) == [
        ["true class", "'=common", "untested", "rare"],
        ["'=common", "3", "0", "1"],
        ["untested", "0", "0", "0"],
        ["rare", "1", "1", "1"],
    ]


def test_cells_are_the_darker_the_more_and_blue_where_right(results):
    (axes,) = confusion_figure(results).axes
    cells = {patch.get_xy(): patch for patch in axes.patches if isinstance(patch, Rectangle)}
    assert cells.keys() == {(-0.5, -0.5), (1.5, -0.5), (-0.5, 1.5), (0.5, 1.5), (1.5, 1.5)}
    right, wrong = cells[-0.5, -0.5], cells[1.5, -0.5]
    assert (right.get_alpha(), wrong.get_alpha()) == (pytest.approx(0.8), pytest.approx(0.4))  # 75 and 25 %
    assert right.get_facecolor()[2] > right.get_facecolor()[0]
    assert wrong.get_facecolor()[0] > wrong.get_facecolor()[2]
