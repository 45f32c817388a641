"""Images sorted into folders of their predicted classes: copies, of which none replaces another."""

import pytest

from livt_hf.evaluation.sorting import sort_into


@pytest.fixture
def results(tmp_path):
    """Two images of the same name, a third class whose name is no folder name, and an unreadable file."""
    classes = {"a/1.jpg": "cat", "b/1.jpg": "cat", "b/2.jpg": "../dog.", "c/1.jpg": ".._dog_"}
    for path in classes:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(path)
    read = [{"image": str(tmp_path / path), "predictions": [{"label": of}]} for path, of in classes.items()]
    return [*read, {"image": "gone.jpg", "error": "gone.jpg: no such file"}]


def test_copies_lie_in_a_folder_per_class(results, tmp_path, capsys):
    out = tmp_path / "sorted"
    assert list(sort_into(results, out)) == results
    found = {file.relative_to(out).as_posix(): file.read_text() for file in out.rglob("*") if file.is_file()}
    assert found == {
        "cat/1.jpg": "a/1.jpg",
        "cat/1_2.jpg": "b/1.jpg",
        "__dog_/2.jpg": "b/2.jpg",
        "__dog__2/1.jpg": "c/1.jpg",
    }
    assert all((tmp_path / result["image"]).is_file() for result in results[:4])  # copied, not moved
    assert capsys.readouterr().out == f"4 images copied into 3 classes in {out}\n"


def test_a_folder_that_is_not_empty_is_refused_before_anything_is_predicted(results, tmp_path):
    with pytest.raises(ValueError, match=r"^sort_into: .* is not empty; name a new folder"):
        sort_into(iter(results), tmp_path)


def test_an_image_that_cannot_be_copied_is_one_line(results, tmp_path):
    (tmp_path / "a" / "1.jpg").unlink()
    with pytest.raises(ValueError, match=r"^sort_into: .*a/1\.jpg cannot be copied to .*cat': No such file"):
        list(sort_into(results, tmp_path / "out"))


def test_images_without_a_label_have_a_folder_that_no_class_shares(tmp_path, capsys):
    results = []
    for name, label in (("1.jpg", None), ("2.jpg", "uncertain"), ("3.jpg", None)):
        (tmp_path / name).touch()
        results.append({"image": str(tmp_path / name), "predictions": [{"label": label}]})
    out = tmp_path / "sorted"
    assert list(sort_into(results, out)) == results
    found = sorted(file.relative_to(out).as_posix() for file in out.rglob("*.jpg"))
    assert found == ["uncertain/1.jpg", "uncertain/3.jpg", "uncertain_2/2.jpg"]
    summary = f"1 image copied into 1 class, and 2 without a label into uncertain, in {out}\n"
    assert capsys.readouterr().out == summary
