"""Building blocks of reports and cards: tables, escaping, numbers, pictures, in Markdown and HTML."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

CITATION = """\
```bibtex
@inproceedings{xu2023learning,
  title     = {Learning Imbalanced Data with Vision Transformers},
  author    = {Xu, Zhengzhuo and Liu, Ruikang and Yang, Shuo and Chai, Zenghao and Yuan, Chun},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2023}
}
```"""


# What can start markup, a table cell, HTML or a link; an underscore only at the edge of a word.
_MARKUP = re.compile(r"[|`<>&*\[\]~$\\#!]|(?<![^\W_])_|_(?![^\W_])|(?<=:)//|@")
# Line breaks, control characters, and marks that reverse the direction of the text around them.
INVISIBLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]+")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]], alignment: str) -> str:
    """A GitHub table. ``alignment``: "l" or "r" for each column. Cells must be escaped already."""
    rule = ["---:" if side == "r" else "---" for side in alignment]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (header, rule, *rows))


def escape_markdown(text: Any) -> str:
    """Text such as a class name, harmless in a line or table cell of Markdown: it shows, and does nothing else."""
    line = INVISIBLE.sub(" ", str(text)).strip()
    return _MARKUP.sub(lambda match: "".join(f"&#{ord(character)};" for character in match.group()), line)


def code_block(text: str) -> str:
    """A fenced block that the text cannot end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}bash\n{text}\n{fence}"


def percent(value: float | None) -> str:
    """One decimal; a dash for what could not be measured."""
    return "–" if value is None else f"{value:.1f}"


def escape_html(text: Any) -> str:
    """Text such as a class name, harmless in an element or a quoted attribute."""
    return html.escape(INVISIBLE.sub(" ", str(text)).strip())


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def paragraph(text: str) -> str:
    return f"<p>{escape_html(text)}</p>"


def html_table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[int] = (1, 2), kind: str = "plain"
) -> str:
    """``numbers``: the columns that stand on the right."""

    def cells(tag: str, row: Sequence[Any]) -> str:
        return "".join(
            f'<{tag} class="number">{escape_html(cell)}</{tag}>'
            if place in numbers
            else f"<{tag}>{escape_html(cell)}</{tag}>"
            for place, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    return f'<table class="{kind}"><thead><tr>{cells("th", header)}</tr></thead><tbody>{body}</tbody></table>'
