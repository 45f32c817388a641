"""Long-tailed subsets are exactly the published ones; class counts of the largest dataset are fast."""

import hashlib
import json
import time

import numpy as np
import pytest

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
