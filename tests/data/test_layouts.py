"""300 random layouts of folders and tables, made from a plan, are read as the plan says.

What must be read is noted where a file is written, and never looked for in the folder again.
"""

import csv
import io
import json
import os
import random
import re
from collections import defaultdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.images import png
from livt_hf.data import load_long_tailed
from livt_hf.evaluation.predict import find_images

LAYOUTS, BATCH = 300, 25
SPLITS = {
    "train": ["train", "Train", "training"],
    "validation": ["val", "valid", "VALIDATION", "dev"],
    "test": ["test", "Test", "testing", "eval", "evaluation"],
}
CLASSES = ["cat", "dog", "train", "test", "val", "10", "9", "Größe", "a b", "x.jpg", "evaluation"]
SUFFIXES = [".jpg", ".JPG", ".jpeg", ".Png", ".WEBP", ".tif"]
JUNK = ["._1.jpg", ".hidden/1.jpg", "__MACOSX/1.jpg", "@eaDir/1.jpg", "$RECYCLE.BIN/1.jpg", ".DS_Store", "Thumbs.db"]


class Layout:
    """A folder that is filled from a plan; ``expected`` collects (path, class) of each split."""

    def __init__(self, root, seed, image):
        self.root, self.random, self.image = root, random.Random(seed), image
        self.expected = defaultdict(set)
        self.number = 0

    def write(self, path):
        """A copy of the image, or a link to one elsewhere."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if self.random.random() < 0.1:
            os.symlink(self.image, file)
        else:
            os.link(self.image, file)

    def image_name(self, deep=True):
        self.number += 1
        deep = self.random.choice(["", "", "", "deep/", "album.jpg/"]) if deep else ""
        return f"{deep}{self.number}{self.random.choice(SUFFIXES)}"

    def splits(self):
        """Names of folders by split: all three, some, or none."""
        kept = [split for split in SPLITS if split == "train" or self.random.random() < 0.6]
        return {split: self.random.choice(SPLITS[split]) for split in kept}

    def classes(self, names=CLASSES):
        return self.random.sample(names, self.random.randint(2, 4))

    def junk(self, *folders):
        for folder in folders:
            for name in self.random.sample(JUNK, 2):
                file = self.root / folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"no image")

    def some(self, low=1):
        return range(self.random.randint(low, 3))


def class_folders(layout):
    """SPLIT/CLASS/*.jpg, or CLASS/*.jpg; a class folder may be a link, or point back to the root."""
    splits = layout.splits() if layout.random.random() < 0.6 else {"train": ""}
    classes, like_splits = layout.classes(), {"train", "test", "val", "evaluation"}
    if not splits["train"] and set(classes) <= like_splits:
        classes.append("cat")  # alone, they would be splits without labels
    for split, folder in splits.items():
        for name in classes:
            place = f"{folder}/{name}" if folder else name
            if layout.random.random() < 0.2:
                elsewhere = layout.root.parent / f"elsewhere-{split}-{classes.index(name)}"
                elsewhere.mkdir()
                (layout.root / folder).mkdir(parents=True, exist_ok=True)
                os.symlink(elsewhere, layout.root / place)
            for _ in layout.some(low=split == "train"):
                may_be_split = not folder and name in like_splits
                path = f"{place}/{layout.image_name(deep=not may_be_split)}"
                layout.write(path)
                layout.expected[split].add((path, name))
            (layout.root / place).mkdir(parents=True, exist_ok=True)
            layout.junk(place)
            if layout.random.random() < 0.2:
                os.symlink(layout.root, layout.root / place / "loop")
        layout.junk(folder)
    return layout.root, {}  # a split without any image is none, and not in ``expected`` either


def metadata(layout):
    """Images in a folder per split with a metadata file each, or one for all."""
    splits = layout.splits() if layout.random.random() < 0.7 else {"train": ""}
    one_for_all = layout.random.random() < 0.5 or not splits["train"]
    kind = layout.random.choice(["csv", "jsonl", "parquet"])
    column = layout.random.choice(["label", "label", "kind"])
    labels = layout.random.choice(
        [layout.classes(["cat", "dog", "cow", "a, b"]), layout.random.sample(range(-3, 30), 3)]
    )
    tables = defaultdict(list)
    for split, folder in splits.items():
        for label in labels:
            for _ in layout.some():
                path = f"{folder}/{layout.image_name()}".removeprefix("/")
                layout.write(path)
                place = "" if one_for_all else folder
                tables[place].append({"file_name": path.removeprefix(f"{place}/"), column: label})
                layout.expected[split].add((path, str(label)))
    for place, rows in tables.items():
        layout.random.shuffle(rows)
        if layout.random.random() < 0.3:
            rows.append({"file_name": f"{splits['train']}/gone.jpg" if one_for_all else "gone.jpg", column: labels[0]})
        write_rows(layout.root / place / f"metadata.{kind}", kind, rows)
        layout.junk(place)
    return layout.root, {} if column == "label" else {"label_column": column}


def write_rows(file, kind, rows):
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        with file.open("w", newline="") as text:
            writer = csv.DictWriter(text, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


LISTS = {"train": "train_list", "validation": "val_list", "test": "test_list"}
HEADINGS = [("path", "label"), ("Image Path", "CLASS"), ("file_name", "Category"), ("filename", "species"), None]
STYLES = {
    "plain": lambda root, path: path,
    "windows": lambda root, path: path.replace("/", "\\"),
    "dot": lambda root, path: f"./{path}",
    "absolute": lambda root, path: f"{root}/{path}",
    "id": lambda root, path: os.path.splitext(os.path.basename(path))[0],
}


def table(layout):
    """A table of paths and labels per split, in the images' folder or beside it."""
    choose = layout.random.choice
    suffix, delimiter = choose([".csv", ".CSV", ".tsv", ".txt"]), choose(",;\t|")
    encoding = choose(["utf-8", "utf-8-sig", "utf-16", "cp1252"])
    style, heading = choose([*STYLES]), choose(HEADINGS)
    labels = choose([layout.classes(["cat", "Größe", "a, b", "dog; wolf"]), layout.random.sample(range(-5, 300), 3)])
    lists = {}
    for split in layout.splits():
        rows = [] if heading is None else [heading]
        for label in labels:
            for _ in layout.some():
                # Numbered classes would be named after their folders if each had its own.
                place = choose(["a", "b", "b c"]) if isinstance(label, str) else "a"
                path = f"images/{place}/{layout.image_name(deep=isinstance(label, str))}"
                layout.write(path)
                rows.append((STYLES[style](layout.root, path), label))
                layout.expected[split].add((path, str(label)))
            if layout.random.random() < 0.2:  # without a label
                path = f"images/a/{layout.image_name()}"
                layout.write(path)
                rows.append((STYLES[style](layout.root, path), ""))
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter, lineterminator=choose(["\n", "\r\n", "\n\n"])).writerows(rows)
        lists[split] = layout.root / f"{split}{suffix}"
        lists[split].write_bytes(text.getvalue().encode(encoding))
    options = {
        f"{split[:3]}_list".replace("tra_", "train_").replace("tes_", "test_"): file for split, file in lists.items()
    }
    if set(lists) == {"train"} and choose([True, False]):
        return lists["train"], {}
    return layout.root, options


def official_list(layout):
    """Lines "path label" as in the official lists; classes are named after their folders, in label order."""
    names = layout.classes(["n01", "n03", "n02", "a b"])
    options = {}
    for split in layout.splits():
        lines = []
        for label, name in enumerate(names):
            for _ in layout.some():
                path = f"all/{name}/{layout.image_name().rpartition('/')[2]}"
                layout.write(path)
                lines.append(f"{path} {label}")
                layout.expected[split].add((path, name))
        file = layout.root / f"{split}.txt"
        file.write_text("\n".join(lines) + "\n")
        options[LISTS[split]] = file
    return layout.root, options


def faulty(layout):
    """A layout that cannot be read, and what the error says."""
    kind = layout.random.choice(
        ["no classes", "no training", "same split", "two metadata", "one id of two", "no label"]
    )
    split = layout.random.choice(SPLITS["train"])
    first, second = layout.image_name(deep=False), layout.image_name(deep=False)
    if kind == "no classes":
        layout.write(f"{split}/{first}"), layout.write(f"{split}/{second}")
        return layout.root, {}, f"has 2 images in {split}/, but nothing says which class they are"
    if kind == "no training":
        layout.write(f"Test/cat/{first}")
        return layout.root, {}, "no train/ beside Test/; a training split is needed"
    layout.write(f"{split}/cat/{first}"), layout.write(f"{split}/dog/{second}")
    if kind == "same split":
        layout.write(f"dev/cat/{first}"), layout.write(f"VALID/dog/{first}")
        return layout.root, {}, "VALID/ and dev/ are both a validation split"
    if kind == "two metadata":
        for name in ("metadata.csv", "metadata.jsonl"):
            (layout.root / name).write_text("file_name,label\n")
        return layout.root, {}, "has metadata.csv and metadata.jsonl; keep one of them"
    file = layout.root / "labels.csv"
    file.write_text("id,label\n1,cat\n2,\n" if kind == "one id of two" else f"path,label\n{split}/cat/{first},\n")
    if kind == "no label":
        return file, {}, "none of its rows has a label"
    layout.write(f"more/{first}")
    return file, {}, "'1' is the id of 2 images below"


KINDS = [class_folders, class_folders, metadata, table, table, official_list, faulty]


def found_in(splits, root):
    """(path, class) of each split, and that the classes are in their order."""
    names = splits["train"].features["label"].names
    numbers = all(name.removeprefix("-").isdecimal() for name in names)
    assert numbers or names == sorted(names) or names[0].startswith(("n0", "a b"))
    return {
        split: {(os.path.relpath(row["image"]["path"], root), names[row["label"]]) for row in rows}
        for split, rows in splits.items()
    }


@pytest.mark.parametrize("start", range(0, LAYOUTS, BATCH))
def test_a_random_layout_is_read_as_it_was_planned(tmp_path, start):
    image = tmp_path / "image.png"
    image.write_bytes(png())
    for seed in range(start, start + BATCH):
        root = tmp_path / str(seed) / "photos"
        root.mkdir(parents=True)
        layout = Layout(root, seed, image)
        make = KINDS[seed % len(KINDS)]
        source, options, *error = make(layout)
        if error:
            with pytest.raises(ValueError, match=re.escape(error[0])) as caught:
                load_long_tailed(source, **options)
            assert "\n" not in str(caught.value)
            continue
        found = found_in(load_long_tailed(source, **options), root)
        assert found == dict(layout.expected), f"layout {seed} ({make.__name__}), {options}"


@pytest.mark.parametrize("start", range(0, LAYOUTS, LAYOUTS // 3))
def test_predict_reads_what_training_reads(tmp_path, start):
    image = tmp_path / "image.png"
    image.write_bytes(png())
    for seed in range(start, start + LAYOUTS // 3, 12):
        root = tmp_path / str(seed) / "photos"
        root.mkdir(parents=True)
        layout = Layout(root, seed, image)
        class_folders(layout)
        paths = {os.path.relpath(path, root) for path in find_images([str(root)])}
        assert paths == {path for rows in layout.expected.values() for path, _ in rows}
