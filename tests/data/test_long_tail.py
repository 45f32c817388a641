"""Long-tailed subsets are exactly the published ones; class counts of the largest dataset are fast."""

import hashlib
import json
import time

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from helpers.paths import FIXTURES, SHARED
from livt_hf.data import (
    class_counts,
    long_tailed_indices,
)
from livt_hf.data.table import image_column, image_dataset

needs_shared = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs ../shared")


@pytest.mark.parametrize("imbalance_factor", ["100", "10"])
def test_the_exponential_profile_keeps_the_published_images(imbalance_factor):
    published = json.loads((FIXTURES / "data_cifar_lt_selection.json").read_text())
    labels = np.array([int(label) for label in published["labels"]])
    kept = long_tailed_indices(labels, float(imbalance_factor))
    expected = published["selections"][imbalance_factor]
    assert np.bincount(labels[kept]).tolist() == expected["counts"]
    assert hashlib.sha256(",".join(map(str, kept)).encode()).hexdigest() == expected["sha256"]


@needs_shared
def test_the_digest_matches_the_reference_indices():
    reference = json.loads((SHARED / "reference/cifar_lt_selection.json").read_text())
    for imbalance_factor, selection in reference["selections"].items():
        kept = long_tailed_indices(reference["labels"], float(imbalance_factor))
        assert kept.tolist() == [index for indices in selection["indices_by_class"] for index in indices]


@pytest.mark.parametrize(
    ("classes", "per_class", "imbalance_factor", "total"),
    [(10, 5000, 100, 12406), (10, 5000, 10, 20431), (100, 500, 100, 10847), (100, 500, 10, 19573)],
)
def test_totals_of_the_published_cifar_sets(classes, per_class, imbalance_factor, total):
    labels = np.arange(classes * per_class) % classes
    assert len(long_tailed_indices(labels, imbalance_factor)) == total


def test_the_step_profile_keeps_all_images_of_half_the_classes():
    labels = np.repeat(np.arange(5), 40)
    kept = long_tailed_indices(labels, 10, profile="step")
    assert np.bincount(labels[kept]).tolist() == [40, 40, 4, 4, 4]


def test_a_small_class_keeps_all_images_and_the_rule_starts_from_the_largest():
    labels = np.repeat([0, 1, 2], [10, 100, 30])
    assert np.bincount(labels[long_tailed_indices(labels, 100)]).tolist() == [10, 10, 1]
    by_frequency = long_tailed_indices(labels, 100, order="frequency")
    assert np.bincount(labels[by_frequency]).tolist() == [1, 100, 10]


def test_the_seed_selects_the_images_not_their_number():
    labels = np.repeat(np.arange(4), 50)
    first, again, other = (long_tailed_indices(labels, 10, seed=seed) for seed in (3, 3, 4))
    assert first.tolist() == again.tolist() != other.tolist()
    assert np.bincount(labels[first]).tolist() == np.bincount(labels[other]).tolist()


@pytest.mark.parametrize(
    ("feature", "labels", "counts"),
    [
        (ClassLabel(names=["b", "a", "c"]), [1, 0, 1], {"b": 1, "a": 2, "c": 0}),
        (Value("int64"), [10, 2, 10], {"2": 1, "10": 2}),
        (Value("int64"), [0, -3, 0], {"-3": 1, "0": 2}),
        (Value("float64"), [10.0, 2.0, 10.0], {"2": 1, "10": 2}),
        (Value("string"), ["dog", "cat", "dog"], {"cat": 1, "dog": 2}),
        (Value("bool"), [True, False, True], {"false": 1, "true": 2}),
    ],
)
def test_any_dataset_is_counted_in_label_order(feature, labels, counts):
    columns = {"label": labels, "number": [0, 1, 1], "kind": labels}
    rows = Dataset.from_dict(columns, Features({"label": feature, "number": Value("int8"), "kind": feature}))
    assert list(class_counts(rows).items()) == list(counts.items())
    assert class_counts(rows, label_column="kind") == counts
    assert class_counts(rows, label_column="number") == {"0": 1, "1": 2}
    assert class_counts(DatasetDict({"train": rows})) == counts
    found = {name: count for name, count in class_counts(rows.select([1, 1])).items() if count}  # of a selection
    assert found == {name: 2 for name, count in counts.items() if count == 1}


def test_what_cannot_be_counted_is_named():
    rows = Dataset.from_dict({"class": ["a", None], "several": [[1], [1, 2]], "note": ["x", "y"]})
    with pytest.raises(ValueError, match="^the dataset: label None of column 'class', row 1 is not one of"):
        class_counts(rows)
    with pytest.raises(ValueError, match="^label_column: 'several' of the dataset contains lists; several labels per"):
        class_counts(rows, "several")
    with pytest.raises(ValueError, match="^label_column: the dataset has no column 'kind'; name one of class, several"):
        class_counts(rows, "kind")
    empty = Dataset.from_dict({"label": []}, Features({"label": ClassLabel(names=["a"])}))
    assert class_counts(empty) == {"a": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imbalance_factor": 0.5}, "^imbalance_factor: 0.5 must be at least 1"),
        ({"imbalance_factor": float("nan")}, "^imbalance_factor: nan must be at least 1"),
        ({"imbalance_factor": 51}, "^imbalance_factor: 51 leaves the smallest class without images; use at most 50"),
        ({"imbalance_factor": 2, "profile": "linear"}, "^imbalance_profile: 'linear' is unknown; use one of exp, step"),
        ({"imbalance_factor": 2, "order": "name"}, "^order: 'name' is unknown; use one of label, frequency"),
    ],
)
def test_bad_long_tail_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        long_tailed_indices(np.repeat(np.arange(4), 50), **options)


def test_the_largest_dataset_is_counted_and_cut_in_less_than_two_seconds():
    """iNaturalist 2018: 437,513 rows in 8,142 classes. It takes about 0.2 s; the limit is for slow machines."""
    labels = np.arange(437_513) % 8142
    names = [str(label) for label in range(8142)]
    rows = image_dataset(image_column(paths=["x.jpg"] * len(labels)), labels, names, "large")
    start = time.process_time()
    assert list(class_counts(rows).values()) == np.bincount(labels).tolist()
    kept = long_tailed_indices(labels, 10)
    assert sum(class_counts(rows.select(kept)).values()) == len(kept)
    assert time.process_time() - start < 2
