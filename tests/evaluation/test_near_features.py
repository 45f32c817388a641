"""The threshold of similarity by features, against closed forms and counts of pairs; what the hash does not find."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers.images import photo, symmetric_features
from livt_hf.data import load_long_tailed
from livt_hf.data.decoding import decode_image
from livt_hf.data.table import Rows
from livt_hf.data.tools.check import check_dataset
from livt_hf.evaluation import near_features
from livt_hf.evaluation.near_features import (
    ALTERATIONS,
    Tail,
    altered_copies,
    calibrate,
    center_and_whitening,
    find_similar,
    unrelated_tails,
)

TAILS = [Tail(1000, 0.5, 0.01, 2.0)]  # 10 pairs above 0.5, a quarter of them above 0.75


def copies(*values):
    return {name: np.array(values, dtype=np.float32) for name in ALTERATIONS}


def test_the_threshold_is_what_nearly_all_copies_reach():
    found = calibrate(copies(*np.linspace(0.9, 1.0, 101)) | {"mirrored": np.full(101, 0.6)}, TAILS)
    assert found.threshold == pytest.approx(0.905, abs=1e-6)
    assert found.share == pytest.approx(0.95, abs=0.01)
    assert found.reached["mirrored"] == 0
    assert (found.pairs, found.false_alarms) == (1000, pytest.approx(10 * 0.19**2, rel=1e-4))
    assert found.separates
    assert "95 % of altered copies (JPEG quality 60 95 %" in str(found)
    assert "an estimated 0.36 of 1,000 unrelated pairs" in str(found)


def test_the_threshold_is_not_below_what_one_unrelated_pair_reaches():
    found = calibrate(copies(*np.linspace(0.8, 1.0, 101)), TAILS)
    assert found.threshold == pytest.approx(1 - 0.5 / np.sqrt(10), abs=2e-6)
    assert found.false_alarms == pytest.approx(1, rel=1e-3)
    assert found.share == pytest.approx(0.79, abs=0.01)  # from 0.842 on
    assert found.separates


def test_a_model_that_cannot_tell_copies_is_named():
    found = calibrate(copies(*np.linspace(0.2, 0.9, 101)), TAILS)
    assert not found.separates
    assert "cannot tell copies from unrelated images" in str(found)


def on_sphere(count, width, seed):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_tails_foretell_how_many_of_all_pairs_are_similar():
    # Twice as many images as are sampled. Classes of 5 and of 9 dimensions, at right angles to each other.
    near, far = torch.zeros(1500, 14), torch.zeros(500, 14)
    near[:, :5], far[:, 5:] = on_sphere(1500, 5, 0), on_sphere(500, 9, 1)
    vectors, labels = torch.cat([near, far]), np.repeat([0, 1], [1500, 500])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(near_features, "SAMPLE", 1000)
        (within,) = (tail for tail in unrelated_tails(vectors, labels, 0) if tail.start > 0)
    assert within.pairs == 1500 * 1499 // 2 + 500 * 499 // 2
    similarity = (vectors @ vectors.T).triu(1)
    for threshold, factor in ((0.97, 1.2), (0.98, 1.3), (0.995, 2)):  # 770, 356 and 25 pairs
        count = int((similarity >= threshold).sum())
        assert count / factor < within.expected(threshold) < count * factor
    assert within.power == pytest.approx(2, rel=0.2)  # (5 - 1) / 2


def test_the_kinds_have_tails_of_their_own_and_few_pairs_have_one():
    vectors = on_sphere(60, 5, 0)
    labels = np.arange(60) % 2
    assert [tail.pairs for tail in unrelated_tails(vectors, labels, 0)] == [900, 870]
    assert [tail.pairs for tail in unrelated_tails(vectors, np.zeros(60, int), 0)] == [1770]
    one_of_each = np.minimum(np.arange(21), 1)  # 20 pairs of two classes, too few for a tail
    assert [tail.pairs for tail in unrelated_tails(vectors[:21], one_of_each, 0)] == [210]
    assert unrelated_tails(vectors[:6], labels[:6], 0) == []


def test_equal_vectors_reach_no_threshold_below_one():
    (tail,) = unrelated_tails(torch.ones(40, 1), np.zeros(40, int), 0)
    assert np.isfinite([tail.power, tail.expected(-1.0), tail.expected(1.0)]).all()
    assert not calibrate(copies(*[0.9999] * 5), [tail]).separates


@pytest.fixture
def folder(tmp_path):
    """20 cats and 10 dogs in training, 4 images in test, each of other colors; test/dog/0 is train/cat/3 mirrored."""
    for split, counts in {"train": (20, 10), "test": (2, 2)}.items():
        for name, count in zip(("cat", "dog"), counts, strict=True):
            for index in range(count):
                file = tmp_path / "photos" / split / name / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                photo(40, 60, seed=index + 30 * (name == "dog") + 50 * (split == "test")).save(file)
    photo(40, 60, seed=3).transpose(0).save(tmp_path / "photos/test/dog/0.png")
    return tmp_path / "photos"


def test_copies_are_altered_as_named(folder):
    train = load_long_tailed(folder)["train"]
    rows = Rows(altered_copies(train, np.array([4, 25])))
    assert len(rows) == 8
    original = decode_image(Rows(train).image(25)).float()
    images = dict(zip(ALTERATIONS, (decode_image(rows.image(row)).float() for row in (1, 3, 5, 7)), strict=True))
    assert [rows.label(row) for row in (0, 1, 2)] == [0, 1, 0]
    assert (images["JPEG quality 60"] - original).abs().mean() < 6
    assert images["cropped by 5 %"].shape == (3, 38, 57)
    assert images["20 % darker"].mean() == pytest.approx(0.8 * original.mean().item(), abs=1)
    assert (images["mirrored"].flip(2) - original).abs().mean() < 3


def test_mirrored_copies_are_found_beyond_the_hash(folder):
    photo(40, 60, seed=7).resize((50, 40)).save(folder / "train/cat/copy.png")
    splits = load_long_tailed(folder)
    checked = check_dataset(splits, 0)
    assert len(checked.near) == 1  # cat/7 and its copy, by the hash
    features = {split: symmetric_features(rows) for split, rows in splits.items()}
    features["train"][0] = np.nan
    found = find_similar(splits, checked, features, symmetric_features, device="cpu")
    assert found.calibration.reached["mirrored"] == 1
    assert found.calibration.share >= 0.9
    (group,) = found.groups
    assert [(image.split, image.label, image.file.removeprefix(f"{folder}/")) for image in group] == [
        ("train", "cat", "train/cat/3.png"),
        ("test", "dog", "test/dog/0.png"),
    ]
    again = find_similar(splits, checked, features, symmetric_features, device="cpu")
    assert again == found


def test_whitened_features_have_equal_variances_and_no_empty_direction_grows():
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(500, 3, generator=generator) * torch.tensor([100.0, 1.0, 5.0]) + 7
    mixed = torch.cat([train, train[:, :1]], dim=1)  # of rank 3
    center, matrix = center_and_whitening(mixed)
    white = (mixed - center) @ matrix
    assert white.mean(0).abs().max() < 1e-3
    ratio = 1 / (1 + near_features.RIDGE * (2 * 100**2 + 1 + 5**2) / 4 / torch.tensor([2.0 * 100**2, 5**2, 1]))
    assert white.var(0, correction=0).sort(descending=True).values[:3] == pytest.approx(ratio, rel=0.2)
    assert white.var(0).min() < 1e-6


def test_whitening_is_taken_where_one_direction_drowns_the_others(folder):
    """A direction of chance 30 times as long as what tells images apart; copies have another chance."""
    splits = load_long_tailed(folder)
    files = [image["path"].rpartition("/")[2] for image in splits["train"].data.column("image").to_pylist()]
    random = np.random.default_rng(0)
    basis = random.normal(size=(192, 10))

    def drowned(dataset):
        image = symmetric_features(dataset)
        image = (image / image.mean(axis=1, keepdims=True) - 1) @ basis  # whatever its brightness
        return np.concatenate([image, random.normal(size=(len(image), 1)) * 30], axis=1).astype(np.float32)

    features = {split: drowned(rows) for split, rows in splits.items()}
    found = find_similar(splits, check_dataset(splits, 0), features, drowned, device="cpu")
    assert found.calibration.separates
    pairs = [[(image.split, image.row) for image in group] for group in found.groups]
    assert [("train", files.index("3.png")), ("test", 2)] in pairs
    assert len(pairs) <= 3  # one pair by chance is expected
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(near_features, "center_and_whitening", lambda train: (train.mean(dim=0), torch.eye(11)))
        found = find_similar(splits, check_dataset(splits, 0), features, drowned, device="cpu")
    assert not found.calibration.separates


def test_features_of_noise_leave_it_to_the_hash(folder):
    splits = load_long_tailed(folder)
    random = np.random.default_rng(0)

    def noise(dataset):
        return random.normal(size=(len(dataset), 6)).astype(np.float32)

    features = {split: noise(rows) for split, rows in splits.items()}
    found = find_similar(splits, check_dataset(splits, 0), features, noise, device="cpu")
    assert found.groups == []
    assert "cannot tell copies" in str(found)


def test_few_images_are_not_compared(folder):
    splits = load_long_tailed(folder)
    few = splits["train"].select([0, 1, 2])
    splits = type(splits)({"train": few})
    features = {"train": np.eye(3, dtype=np.float32)}
    found = find_similar(splits, check_dataset(splits, 0), features, lambda _: pytest.fail("not needed"), device="cpu")
    assert found.groups == []
    assert str(found).startswith("too few images")
