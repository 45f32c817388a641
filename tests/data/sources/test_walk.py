"""One walk of folders: what is left out, what is followed, and what an error says is there."""

import os

import pytest

from helpers.images import png
from livt_hf.data.sources.walk import describe_content, has_images, image_paths
from livt_hf.evaluation.predict import find_images


def touch(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png())


def test_a_folder_as_phones_macs_and_galleries_leave_it(tmp_path):
    root = tmp_path / "inbox"
    touch(root / "IMG_1.JPG", root / "sub" / "2.jpeg", root / "album.jpg" / "3.jpg", tmp_path / "elsewhere" / "4.jpg")
    touch(root / "._IMG_1.JPG", root / ".thumbnails" / "t.jpg")
    for system in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "$Recycle.Bin", "System Volume Information", "lost+found"):
        touch(root / system / "5.jpg", root / "sub" / system / "5.jpg")
    os.symlink("../elsewhere", root / "linked")
    os.symlink(root / "IMG_1.JPG", root / "sub" / "to_file.png")
    (root / "notes.txt").write_text("6.jpg")
    names = ["IMG_1.JPG", "album.jpg/3.jpg", "linked/4.jpg", "sub/2.jpeg", "sub/to_file.png"]
    assert image_paths(root) == [str(root / name) for name in names]
    assert find_images([str(root)]) == image_paths(root)


def test_a_loop_of_links_is_cut(tmp_path):
    touch(tmp_path / "cat" / "1.jpg", tmp_path / "cat" / "deep" / "2.jpg", tmp_path / "dog" / "3.jpg")
    os.symlink(tmp_path, tmp_path / "cat" / "deep" / "top")
    os.symlink(tmp_path / "cat" / "deep", tmp_path / "cat" / "deep" / "again")
    os.symlink(tmp_path / "cat", tmp_path / "dog" / "cats")
    os.symlink(tmp_path / "dog", tmp_path / "cat" / "dogs")
    os.symlink("itself", tmp_path / "cat" / "itself")
    os.symlink("gone.jpg", tmp_path / "cat" / "dangling.jpg")
    names = ["1.jpg", "dangling.jpg", "deep/2.jpg", "dogs/3.jpg"]
    assert image_paths(tmp_path / "cat") == [str(tmp_path / "cat" / name) for name in names]
    assert has_images(tmp_path / "dog")


def test_errors_say_what_is_in_a_folder(tmp_path):
    assert describe_content(tmp_path) == "no files"
    (tmp_path / "a.txt").touch()
    (tmp_path / "README").touch()
    assert describe_content(tmp_path) == "2 other files: .txt, without extension"
    with pytest.raises(ValueError, match=r"contains no image files \(2 other files: .txt, without extension\)"):
        find_images([str(tmp_path)])
    touch(tmp_path / "b" / "1.jpg", tmp_path / "b" / "2.jpg", tmp_path / "c" / "3.jpg")
    assert describe_content(tmp_path) == "3 images in b/, c/"
    assert describe_content(tmp_path / "c") == f"1 image in {tmp_path / 'c'}"


def test_a_file_name_that_is_not_unicode_is_named(tmp_path):
    from livt_hf.data import load_long_tailed

    touch(tmp_path / "cat" / "1.jpg")
    (tmp_path / "cat" / os.fsdecode(b"\xff.jpg")).write_bytes(png())
    with pytest.raises(ValueError, match=r"cat/\\udcff.jpg': this file name is not valid UTF-8; rename the file"):
        load_long_tailed(tmp_path)
