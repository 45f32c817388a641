"""Report of `livt dataset check`: check.html, with pictures of near-duplicates and of images whose label is doubted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import write_text
from .blocks import Block, Code, Picture, Section, Share, Table, counted, escape_html
from .pages import Tile, html_page
from .provenance import public_command, public_name
from .thumbnails import thumbnail

ACROSS = (
    "Images of different splits that are nearly equal: copies up to compression, size, a slight crop, brightness or "
    "color. Those of the test or validation split inflate the accuracy; remove them from one of the two splits. Each "
    "group shows one image of each split and class."
)
CLASSES = (
    "Training images that are nearly equal and have different labels: at most one of the labels is right, unless the "
    "image shows both classes."
)
SIMILAR_ACROSS = (
    "Images of different splits that the model sees as alike and the hash does not, such as mirrored copies or other "
    "shots of one object. Each group shows one image of each split and class."
)
SIMILAR_CLASSES = (
    "Training images that the model sees as alike, with different labels: copies, or classes that overlap."
)
IDENTICAL = (
    "Images with the same bytes in two splits, or in training under two labels. Remove one of each pair; "
    "duplicates.csv lists all of them, and those within a class."
)
DOUBTS = (
    "Labels that confident learning doubts (Northcutt, Jiang and Chuang, JAIR 2021): a balanced linear probe on the "
    "features of the model, fitted without the image, is confident of another class. This is a list of images to look "
    "at, not of wrong labels: the weaker the model, the more of them are right. Label → suggestion, with their "
    "probabilities; the rarest classes come first, as a few wrong labels hurt them most."
)


LISTED = 100  # pairs of identical images


class Shown(NamedTuple):
    """An image, uint8 (H, W, 3), with the bold first line and the other lines of its caption."""

    image: np.ndarray
    title: str
    lines: tuple[str, ...]


class ShownGroups(NamedTuple):
    """Groups to show, each with the number of its images that are not shown; how many groups there are."""

    groups: Sequence[tuple[Sequence[Shown], int]]
    total: int


class DoubtedLabels(NamedTuple):
    """Images to show; training images of each class; label and suggestion of every doubted image.

    ``agreed``: images of each class that the probe puts into it, in the order of ``counts``.
    """

    shown: Sequence[Shown]
    counts: Mapping[str, int]
    labels: Sequence[str]
    suggested: Sequence[str]
    agreed: Sequence[int]


def write_check_report(
    file: Path,
    dataset: str,
    images: Mapping[str, int],
    unreadable: Mapping[str, int],
    *,
    identical: tuple[Sequence[Sequence[str]], Sequence[Sequence[str]]],
    near: tuple[ShownGroups, ShownGroups],
    similar: tuple[str, tuple[ShownGroups, ShownGroups]] | None,
    doubts: DoubtedLabels | None,
    command: str,
) -> None:
    """Write the page.

    Args:
        images, unreadable: numbers per split.
        identical: pairs of equal images in two splits, and in training under two labels: a file and its split or label,
            and the same of the other.
        near: near-duplicates between splits, and between classes of the training split.
        similar: how features were compared, and the same of what they found beyond; None without a model.
        doubts: None without a model.
    """
    tiles: list[Tile] = [
        (f"{sum(images.values()):,}", "images", "all"),
        (f"{sum(unreadable.values()):,}", "unreadable", "all"),
        (f"{len(identical[0]):,}", "identical in two splits", "all"),
        (f"{len(identical[1]):,}", "identical in two classes", "all"),
        (f"{near[0].total:,}", "near-duplicate groups between splits", "all"),
        (f"{near[1].total:,}", "near-duplicate groups between classes", "all"),
    ]
    shown = [
        ("Near-duplicates between splits", ACROSS, near[0]),
        ("Near-duplicates with different labels", CLASSES, near[1]),
    ]
    if similar is not None:
        how, (across, classes) = similar
        tiles.append((f"{across.total:,}", "groups similar by features between splits", "all"))
        tiles.append((f"{classes.total:,}", "groups similar by features between classes", "all"))
        shown.append(("Similar by features between splits", SIMILAR_ACROSS, across))
        shown.append(("Similar by features, with different labels", SIMILAR_CLASSES, classes))
    sections = [*_faults(sum(unreadable.values()), [*identical[0], *identical[1]])]
    sections += [
        Section(
            title,
            [text, _numbers_shown(len(part.groups), part.total, "group"), Picture(title, "", _groups(part.groups))],
        )
        for title, text, part in shown
        if part.groups
    ]
    if similar is not None:
        sections.append(Section("Comparison of features", [how]))
    if doubts is not None:
        tiles.append((f"{len(doubts.labels):,}", "labels doubted", "all"))
        sections.append(Section("Doubted labels", _doubts(doubts)))
    if not any(part.groups for *_, part in shown):
        missing = "No near-duplicates between splits or between classes were found."
        sections.append(Section("Near-duplicates", [missing, "duplicates.csv lists those within a class, if any."]))
    sections.append(Section("Command", [Code(public_command(command))]))
    subtitle = ", ".join(f"{split} {count:,}" for split, count in images.items()) + " images."
    write_text(file, html_page(page_title(dataset), subtitle, tiles, sections))


def _faults(unreadable: int, identical: Sequence[Sequence[str]]) -> list[Section]:
    """What is certainly wrong."""
    sections = []
    if unreadable:
        sections.append(Section("Unreadable images", [f"{counted(unreadable, 'image')}. bad_images.log lists all."]))
    if identical:
        shown = identical[:LISTED]
        table = Table(("File", "In", "Same file", "In"), shown, "llll")
        blocks: list[Block] = [IDENTICAL, _numbers_shown(len(shown), len(identical), "pair"), table]
        sections.append(Section("Identical images", blocks))
    return sections


def page_title(dataset: str) -> str:
    """Title of the page on a dataset."""
    return f"Check of {public_name(dataset)}"


def check_page(file: Path, dataset: str) -> None:
    """ValueError if the file is there already and not the page on the dataset."""
    if file.exists() and f"<title>{escape_html(page_title(dataset))}</title>" not in file.read_text(errors="replace"):
        raise ValueError(
            f"output_dir: {str(file)!r} is there already and is not about {dataset}; name a folder for the report with "
            "--output_dir"
        )


def _doubts(doubts: DoubtedLabels) -> list[Block]:
    total = sum(doubts.counts.values())
    doubted, likely = Counter(doubts.labels), Counter(zip(doubts.labels, doubts.suggested, strict=True))
    rows = []
    for (name, count), agreed in sorted(zip(doubts.counts.items(), doubts.agreed, strict=True), key=lambda x: x[0][1]):
        most = max(doubts.counts, key=lambda other, name=name: likely[name, other])  # type: ignore[misc]
        suggestion = f"{most} ({likely[name, most]:,})" if doubted[name] else "–"
        shares = (Share(100 * doubted[name] / count), Share(100 * agreed / count))
        rows.append((name, f"{count:,}", f"{doubted[name]:,}", *shares, suggestion))
    header = ("Class", "Images", "Doubted", "Doubted %", "Probe agrees %", "Most often suggested")
    blocks: list[Block] = [
        DOUBTS,
        f"Doubted: {len(doubts.labels):,} of {counted(total, 'training image')} "
        f"({100 * len(doubts.labels) / total:.1f} %). label_issues.csv lists all.",
    ]
    if doubts.shown:
        figures = "".join(thumbnail(shown.image, shown.title, shown.title, *shown.lines) for shown in doubts.shown)
        contact_sheet = Picture("Doubted labels", "", f'<div class="thumbnails">{figures}</div>')
        blocks += [_numbers_shown(len(doubts.shown), len(doubts.labels), "image"), contact_sheet]
    return [*blocks, Table(header, rows, "lrrrrl", "sortable")]


def _numbers_shown(shown: int, total: int, noun: str) -> str:
    return f"{counted(total, noun)}." if shown == total else f"{shown} of {counted(total, noun)} are shown."


def _groups(groups: Sequence[tuple[Sequence[Shown], int]]) -> str:
    """Groups side by side in rows, the images of each side by side."""
    elements = []
    for images, hidden in groups:
        figures = "".join(
            f'<div style="flex:1 1 0;min-width:0;max-width:160px">{thumbnail(image, title, title, *lines)}</div>'
            for image, title, lines in images
        )
        more = f'<p style="flex-basis:100%;margin:0">and {hidden:,} more</p>' if hidden else ""
        elements.append(f'<div style="display:flex;flex-wrap:wrap;gap:6px">{figures}{more}</div>')
    columns = "grid-template-columns:repeat(auto-fill,minmax(270px,1fr))"
    return f'<div style="display:grid;{columns};gap:22px">{"".join(elements)}</div>'
