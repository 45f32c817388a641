"""Which images are shown as examples."""

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from livt_hf.evaluation.examples import evenly_spaced, first_image_of_each_class, image_path


@pytest.mark.parametrize(
    ("total", "number", "indices"), [(10, 4, [0, 3, 6, 9]), (3, 8, [0, 1, 2]), (1, 8, [0]), (9, 1, [0])]
)
def test_evenly_spaced_indices_start_at_the_first_and_do_not_repeat(total, number, indices):
    assert evenly_spaced(total, number) == indices


def test_the_first_image_of_each_class_largest_classes_first():
    """The split has other label numbers than the model; one class of the model has no image in it."""
    features = Features({"label": ClassLabel(names=["rare", "common", "middle"]), "image": Value("string")})
    split = Dataset.from_dict({"label": [2, 0, 0, 1, 2, 1], "image": [""] * 6}, features=features)
    counts = {"common": 100, "unseen": 50, "middle": 20, "rare": 3}
    assert list(first_image_of_each_class(split, counts).items()) == [("common", 3), ("middle", 0), ("rare", 1)]
    with pytest.raises(ValueError, match="does not know 1 of its classes: rare"):
        first_image_of_each_class(split, {"common": 100, "middle": 20})


def test_the_path_of_an_image_begins_with_the_dataset_and_names_no_folder_above_it(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/images.csv").touch()
    file = "photos/test/a/1.jpg"
    for dataset in (tmp_path / "photos", tmp_path / "photos/images.csv"):
        assert image_path({"path": str(tmp_path / file)}, dataset) == file
    assert image_path({"path": str(tmp_path / file)}, "org/photos") == "1.jpg"
    assert image_path({"path": f"../{file}"}, None) == "1.jpg"
    assert image_path({"path": "test/a/1.jpg"}, "org/photos") == "test/a/1.jpg"  # within a Parquet file
    assert image_path({"path": None}, tmp_path) is None
    monkeypatch.chdir(tmp_path)
    assert image_path({"path": file}, "photos") == file  # as livt predict prints it
