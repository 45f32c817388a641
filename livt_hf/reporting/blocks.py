"""Building blocks of reports and cards: sections, tables and pictures, rendered to Markdown or HTML.

A report is a list of `Section`, built once and rendered to both. Text in blocks is plain: the renderers escape it, so
that class and file names are shown verbatim.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..class_names import printable
from ..prior import GROUP_NAMES

# Characters that can start markup, a table cell, HTML or a link; an underscore only at the edge of a word.
_MARKUP = re.compile(r"[|`<>&*\[\]~$\\#!]|(?<![^\W_])_|_(?![^\W_])|(?<=:)//|@")


class Strong(str):
    """A table cell in bold."""


class Literal(str):
    """A table cell with a name from code, such as that of an option."""


class Markdown(str):
    """Markdown, not escaped; for cards and comparisons, which have no HTML version."""


class Share(float):
    """A table cell with a percentage, shaded in proportion in HTML."""


@dataclass(frozen=True)
class Table:
    """Rows of plain text, `Strong`, `Literal`, `Share`, `Markdown`, or a tuple of them.

    Attributes:
        alignment: "l" or "r" per column.
        kind: class in HTML: "plain", "matrix", or "sortable" (scrolls, sorts on click).
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    alignment: str
    kind: str = "plain"


@dataclass(frozen=True)
class Picture:
    """An image file in Markdown, an element in HTML.

    Attributes:
        file: path relative to the report.
        html: the element, inserted unescaped.
    """

    caption: str
    file: str
    html: str = ""


@dataclass(frozen=True)
class Code:
    """A shell command."""

    text: str


@dataclass(frozen=True)
class InMarkdown:
    """Blocks that HTML does not need, since a picture there has this text."""

    blocks: Sequence[str | Table]


Block = str | Table | Picture | Code | InMarkdown  # a string is a paragraph


@dataclass(frozen=True)
class Section:
    """Blocks under a heading, or without one if the title is empty."""

    title: str
    blocks: Sequence[Block]


def to_markdown(*blocks: Block | Section) -> str:
    """Markdown of blocks and sections, separated by empty lines."""
    return "\n\n".join(_markdown(block) for block in blocks)


def _markdown(block: Block | Section) -> str:
    if isinstance(block, Section):
        heading = f"## {escape_markdown(block.title)}\n\n" if block.title else ""
        return heading + to_markdown(*block.blocks)
    if isinstance(block, Table):
        rows = ([_markdown_cell(cell) for cell in row] for row in block.rows)
        return markdown_table(block.header, rows, block.alignment)
    if isinstance(block, Picture):
        return f"![{escape_markdown(block.caption)}]({block.file})"
    if isinstance(block, Code):
        return code_block(block.text)
    if isinstance(block, InMarkdown):
        return to_markdown(*block.blocks)
    return block if isinstance(block, Markdown) else escape_markdown(block)


def _markdown_cell(cell: Any) -> str:
    if isinstance(cell, tuple):
        return " ".join(map(_markdown_cell, cell))
    if isinstance(cell, Share):
        return percent(cell)
    if isinstance(cell, Literal):
        return code_span(cell)
    return f"**{escape_markdown(cell)}**" if isinstance(cell, Strong) else _markdown(cell)


def to_html(*blocks: Block | Section) -> str:
    """HTML elements for templates/report.html."""
    return "".join(_html(block) for block in blocks)


def _html(block: Block | Section) -> str:
    if isinstance(block, Section):
        heading = f"<h2>{escape_html(block.title)}</h2>" if block.title else ""
        return f"<section>{heading}{to_html(*block.blocks)}</section>"
    if isinstance(block, Table):
        return _html_table(block)
    if isinstance(block, Picture):
        return block.html
    if isinstance(block, InMarkdown):
        return ""
    if isinstance(block, Code):
        return f"<pre>{html.escape(block.text)}</pre>"
    return f"<p>{escape_html(block)}</p>"


def _html_table(table: Table) -> str:
    def cells(tag: str, row: Sequence[Any]) -> str:
        return "".join(_html_cell(tag, cell, side) for cell, side in zip(row, table.alignment, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in table.rows)
    text = (
        f'<table class="{table.kind}"><thead><tr>{cells("th", table.header)}</tr></thead><tbody>{body}</tbody></table>'
    )
    if table.kind == "sortable":
        return f'<p>Click a column header to sort.</p><div class="scroll tall">{text}</div>'
    return f'<div class="scroll">{text}</div>'


def _html_cell(tag: str, cell: Any, side: str) -> str:
    attributes = ' class="number"' if side == "r" else ""
    if isinstance(cell, Share):
        return f'<{tag}{attributes} style="--share:{cell:.0f}%">{percent(cell)}</{tag}>'
    parts = cell if isinstance(cell, tuple) else (cell,)
    return f"<{tag}{attributes}>{' '.join(map(_html_text, parts))}</{tag}>"


def _html_text(part: Any) -> str:
    tag = "b" if isinstance(part, Strong) else "code" if isinstance(part, Literal) else None
    return f"<{tag}>{escape_html(part)}</{tag}>" if tag else escape_html(part)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]], alignment: str) -> str:
    """A GitHub table of escaped cells; ``alignment``: "l" or "r" per column."""
    rule = ["---:" if side == "r" else "---" for side in alignment]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (header, rule, *rows))


def escape_markdown(text: Any) -> str:
    """Text such as a class name on one line, escaped for Markdown, table cells included."""
    return _MARKUP.sub(lambda match: "".join(f"&#{ord(character)};" for character in match.group()), printable(text))


def escape_html(text: Any) -> str:
    """Text such as a class name on one line, escaped for an HTML element or quoted attribute."""
    return html.escape(printable(text))


def csv_cell(value: Any) -> Any:
    """A value for a CSV file. Text that a spreadsheet would run as a formula gets a leading apostrophe.

    As https://owasp.org/www-community/attacks/CSV_Injection advises; numbers stay as they are.
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def code_block(text: str) -> str:
    """A fenced code block with a fence longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}bash\n{text}\n{fence}"


def code_span(text: Any) -> str:
    """Text as a one-line code span, without backticks."""
    return f"`{printable(text).replace('`', ' ')}`"


def counted(number: int, noun: str) -> str:
    """ "1 image", "1,200 images", "2 classes"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def rounded(epoch: float) -> str:
    """An epoch with two significant digits, or as a whole number from 10 on: "0.49", "2.5", "12"."""
    return f"{epoch:.2g}" if epoch < 10 else f"{epoch:.0f}"


def percent(value: float | None) -> str:
    """One decimal; a dash for None."""
    return "–" if value is None else f"{value:.1f}"


def accuracy_words(accuracy: Mapping[str, Any]) -> str:
    """ "81.2 %, many 90.0 %, few 73.5 %": overall accuracy and that of the shot groups that were measured."""
    groups = [name for name in GROUP_NAMES if accuracy[name] is not None]
    return ", ".join([f"{accuracy['accuracy']:.1f} %", *(f"{name} {accuracy[name]:.1f} %" for name in groups)])


def percent_range(value: float | None, interval: Sequence[float] | None) -> str:
    """A percentage with its confidence interval, "64.2 (61.0–67.1)"; without one, as `percent`."""
    ends = "" if value is None or interval is None else f" ({percent(interval[0])}–{percent(interval[1])})"
    return percent(value) + ends


def data_uri(data: bytes, kind: str = "png") -> str:
    """An image file as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
