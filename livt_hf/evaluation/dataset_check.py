"""What `livt dataset check` found, as files: check.html with pictures, duplicates.csv, label_issues.csv.

With a model, also finds the doubted labels of the training split, and images that are similar by features.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset, DatasetDict

from ..data.decoding import decode_image
from ..data.long_tail import class_counts, dataset_labels
from ..data.table import Rows
from ..data.tools.check import CheckedImage, CheckResult, NearGroups, between_classes, between_splits
from ..files import write_text
from ..reporting.blocks import counted, csv_cell
from ..reporting.check_report import DoubtedLabels, Shown, ShownGroups, write_check_report
from .label_issues import LabelIssues, find_label_issues, log_rare_classes
from .near_features import SimilarByFeatures

REPORT, DUPLICATES, ISSUES = "check.html", "duplicates.csv", "label_issues.csv"
PICTURED, SIDE = 48, 320  # groups and images shown; longer side in pixels to which they are reduced on reading
PER_CLASS = 3  # doubted images of a class that are shown before a second round over the classes


def doubted_labels(train: Dataset, features: np.ndarray, *, folds: int, seed: int, device: str | None) -> LabelIssues:
    """Label issues of the training split, by a probe on its features, (N, D); rows of NaN (unreadable) are left out."""
    readable, labels = np.flatnonzero(~np.isnan(features[:, 0])), dataset_labels(train)
    counts = class_counts(train)
    names = list(counts)
    counts = {name: int((labels[readable] == label).sum()) for label, name in enumerate(names)}
    log_rare_classes(counts, folds)
    issues = find_label_issues(features[readable], labels[readable], counts, folds=folds, seed=seed, device=device)
    issues.rows[:] = readable[issues.rows]
    return issues


def doubt_lines(issues: LabelIssues, train: Dataset, limit: int = 20) -> list[str]:
    """Lines to print: how many labels of the training split are doubted, the rarest classes first."""
    counts = class_counts(train)
    names, total = list(counts), sum(counts.values())
    doubted = np.bincount(issues.labels, minlength=len(names))
    agreement = np.mean([issues.agreed[label] / counts[name] for label, name in enumerate(names)])
    lines = [
        f"warning: the labels of {len(issues.rows):,} of {counted(total, 'training image')} are doubted "
        f"({100 * len(issues.rows) / total:.1f} %), by a probe that agrees with {100 * agreement:.0f} % of the labels "
        "(mean over classes)"
    ]
    order = sorted(np.flatnonzero(doubted), key=lambda label: (counts[names[label]], label))
    for label in order[:limit]:
        likely = Counter(issues.suggested[issues.labels == label].tolist()).most_common(1)[0]
        images = counted(counts[names[label]], "image")
        lines.append(f"  {names[label]}: {doubted[label]:,} of {images}, mostly {names[likely[0]]} ({likely[1]:,})")
    return lines + ([f"  ... and {len(order) - limit} more classes"] if len(order) > limit else [])


def write_findings(
    folder: Path,
    dataset: str,
    splits: DatasetDict,
    checked: CheckResult,
    similar: SimilarByFeatures | None,
    issues: LabelIssues | None,
    command: str,
) -> list[Path]:
    """Write the report and the tables into a folder, and return the files with something in them.

    A table of an earlier check is replaced, be it by an empty one. A table of label issues stays if there was no model.
    """
    rows_of = {split: Rows(rows) for split, rows in splits.items()}
    counts = class_counts(splits["train"])
    names, root = list(counts), Path(dataset).absolute()
    groups = [("bytes", group) for group in checked.identical]
    groups += [("hash", group) for group in checked.near]
    groups += [("features", group) for group in (similar.groups if similar else [])]
    duplicates = [(number, by, *image) for number, (by, group) in enumerate(groups, start=1) for image in group]
    _write_table(
        folder / DUPLICATES,
        ("group", "found_by", "split", "file", "label"),
        [(number, by, split, file, label) for number, by, split, _, file, label in duplicates],
    )
    doubts = None
    if issues is not None:
        train = rows_of["train"]
        files = [train.image(int(row))["path"] or f"row {row}" for row in issues.rows]
        given, likely = ([names[label] for label in column] for column in (issues.labels, issues.suggested))
        numbers = zip(issues.probabilities, issues.suggested_probabilities, issues.margins, strict=True)
        columns = zip(
            files, given, likely, ([round(float(value), 6) for value in each] for each in numbers), strict=True
        )
        header = ("file", "label", "suggested_label", "probability", "suggested_probability", "margin", "class_images")
        _write_table(folder / ISSUES, header, [(*row, *values, counts[row[1]]) for *row, values in columns])
        shown = [
            _shown(
                rows_of,
                CheckedImage("train", int(issues.rows[index]), files[index], given[index]),
                root,
                f"→ {likely[index]} ({100 * issues.suggested_probabilities[index]:.0f} %)",
                f"{100 * issues.probabilities[index]:.0f} % for its label",
            )
            for index in _to_show(issues, [counts[name] for name in names])
        ]
        doubts = DoubtedLabels(shown, counts, given, likely, issues.agreed.tolist())
    write_check_report(
        folder / REPORT,
        dataset,
        checked.images,
        {split: len(bad) for split, bad in checked.bad_images.items()},
        identical=(
            [
                (_relative(file, root), split, _relative(same, root), other)
                for split, file, other, same in checked.shared
            ],
            [
                (_relative(file, root), label, _relative(same, root), other)
                for file, label, same, other in checked.contradicting
            ],
        ),
        near=_near(rows_of, checked.near, root),
        similar=None if similar is None else (str(similar), _near(rows_of, similar.groups, root)),
        doubts=doubts,
        command=command,
    )
    tables = {DUPLICATES: bool(duplicates), ISSUES: issues is not None and len(issues.rows) > 0}
    return [folder / REPORT, *(folder / name for name, filled in tables.items() if filled)]


def _to_show(issues: LabelIssues, sizes: Sequence[int]) -> list[int]:
    """Indices of up to `PICTURED` images: the most doubted of each class, the rarest classes first, in rounds."""
    rank: Counter = Counter()
    order = []
    for index, label in enumerate(issues.labels.tolist()):
        order.append((rank[label] // PER_CLASS, sizes[label], label, index))
        rank[label] += 1
    return [index for *_, index in sorted(order)[:PICTURED]]


def _near(rows_of: Mapping[str, Rows], groups: NearGroups, root: Path) -> tuple[ShownGroups, ShownGroups]:
    """The groups between splits, and those between classes."""
    between = between_splits(groups), between_classes(groups)
    first, second = (ShownGroups([_group(rows_of, g, root) for g in part[:PICTURED]], len(part)) for part in between)
    return first, second


def _group(rows_of: Mapping[str, Rows], group: Sequence[CheckedImage], root: Path) -> tuple[list[Shown], int]:
    """One image of each split and class of a group, up to three (of one only: its first two), and how many are left."""
    first: dict[tuple[str, str], CheckedImage] = {}
    for image in group:
        first.setdefault((image.split, image.label), image)
    chosen = list(first.values())[:3]
    return [_shown(rows_of, image, root, image.split) for image in chosen], len(group) - len(chosen)


def _shown(rows_of: Mapping[str, Rows], image: CheckedImage, root: Path, *lines: str) -> Shown:
    pixels = decode_image(rows_of[image.split].image(image.row)).permute(1, 2, 0).numpy()  # (H, W, 3)
    picture = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((SIDE, SIDE))
    return Shown(np.asarray(picture), image.label, (*lines, _relative(image.file, root)))


def _relative(file: str, root: Path) -> str:
    """A file's path within the dataset, or its name."""
    path = Path(file).absolute()
    return str(path.relative_to(root)) if root.is_dir() and path.is_relative_to(root) else Path(file).name


def _write_table(file: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    if not rows and not file.exists():
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *([csv_cell(value) for value in row] for row in rows)])
    write_text(file, text.getvalue())
