"""Pages of a report: the same sections as a Markdown file and as one self-contained HTML file.

The content security policy of the HTML page allows only its script (by hash), its style and embedded images.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from .blocks import Section, escape_html, to_html, to_markdown

TEMPLATE = Path(__file__).parent / "templates" / "report.html"
Tile = tuple[str, str, str]  # number, what it is, and the shot group whose color it has, or "all"


def markdown_page(title: str, subtitle: str, sections: Sequence[Section], lead: Sequence[str] = ()) -> str:
    """The text of report.md; ``lead``: what matters most, in sentences."""
    return f"# {to_markdown(title)}\n\n{to_markdown(*lead, subtitle, *sections)}\n"


def html_page(
    title: str, subtitle: str, tiles: Iterable[Tile], sections: Sequence[Section], lead: Sequence[str] = ()
) -> str:
    """The text of report.html, with its most important sentences, and numbers in tiles, at the top."""
    template = TEMPLATE.read_text(encoding="utf-8")
    script = template[template.index("<script>") + len("<script>") : template.index("</script>")]
    return Template(template).substitute(
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=escape_html(title),
        lead="".join(f'<p class="lead">{escape_html(sentence)}</p>' for sentence in lead),
        subtitle=escape_html(subtitle),
        tiles="".join(
            f'<div class="tile {group}"><b>{number}</b><span>{name}</span></div>' for number, name, group in tiles
        ),
        sections=to_html(*sections),
    )
