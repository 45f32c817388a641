"""The common look of charts: colors, fonts for class names in any script, PNG and SVG files.

They use matplotlib's object API, without global state. A chart that is as wide as a page is drawn twice: `NARROW` for
PNGs and phones, `WIDE` for larger pages. PNGs have a white background; SVGs from `as_svg` follow the page's light or
dark colors. Shot groups have the same color in every chart.
"""

from __future__ import annotations

import functools
import io
import logging
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager, rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..class_names import printable
from ..files import write_bytes
from .blocks import escape_html

GROUP_COLORS = {"many": "#2f6fde", "medium": "#e0a11b", "few": "#d6455d", "accuracy": "#5b6472"}
INK, MUTED, GRID, BAR = "#1f2933", "#6b7683", "#e6e9ee", "#aab4c2"
OVERCONFIDENT = {"facecolor": "none", "edgecolor": GROUP_COLORS["few"], "hatch": "////", "linewidth": 0.9}
UNDERCONFIDENT = {"facecolor": "none", "edgecolor": "#f2c14e", "hatch": "////", "linewidth": 0.9}
WIDE, NARROW = 8.6, 4.0  # inches; a phone shows a picture 360 pixels wide, so that 9 points of NARROW are 11 pixels
DPI = 144
SHOWN = 860  # pixels: the width at which pages show a wide chart
READABLE = 11  # pixels: height of the smallest text
# Tried in this order for characters that DejaVu Sans lacks; a name in Han characters alone does not tell its language.
FALLBACK_FONTS = (
    *(f"Noto Sans CJK {script}" for script in ("SC", "JP", "TC", "KR")),
    *(f"Noto Sans {script}" for script in ("SC", "JP", "TC", "KR")),
    *(f"Source Han Sans {script}" for script in ("SC", "CN", "TC", "KR")),
    "Source Han Sans",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "SimHei",
    "Yu Gothic",
    "MS Gothic",
    "Hiragino Sans",
    "PingFang SC",
    "PingFang HK",
    "Heiti TC",
    "Malgun Gothic",
    "NanumGothic",
    "Apple SD Gothic Neo",
    "IPAexGothic",
    "IPAGothic",
    "Arial Unicode MS",
    "Noto Sans",
    "Symbola",
)
_CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "IDEOGRAPHIC", "BOPOMOFO")  # how the Unicode names begin
_TOOLTIP = "tooltip:"

logger = logging.getLogger(__name__)


def clean_axes(axes: Axes) -> None:
    """Apply the common style: no frame, a light grid behind the bars, muted ticks, the title on the left.

    A page that is too narrow for the chart shows its left part first.
    """
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors=MUTED, labelcolor=INK)
    axes.yaxis.label.set(color=MUTED, fontsize=9)
    axes.xaxis.label.set(color=MUTED, fontsize=9)
    axes.title.set(color=INK, fontsize=11, fontweight="bold", x=0, horizontalalignment="left")


def fitted(text: str, width: float, points: float = 11, margin: float = 45) -> str:
    """A bold title, broken into lines that fit.

    Args:
        width: of the figure in inches.
        points: of the font.
        margin: what is left and right of the title, in points.
    """
    return wrapped(text, int((72 * width - margin) / (0.645 * points)))


def add_tooltip(artist: Artist, text: str) -> None:
    """Text that the page shows while the pointer is on a bar or another patch; a PNG has none."""
    artist.set_gid(_TOOLTIP + text.encode().hex())  # hex, since any character may be in a name


def short_names(names: Sequence[str], width: int = 24) -> list[str]:
    """Class names for a chart: printable, at most ``width`` columns wide each, different ones still different.

    A long name loses its middle, since similar names often differ at the end; names that would then be the same are
    numbered.

    Args:
        width: in columns of text; a Chinese or Japanese character takes two.
    """
    used: dict[str, str] = {}  # short name -> full name
    shown = []
    for name in names:
        text, number = _without_middle(printable(name), width), 2
        candidate = text
        while used.setdefault(candidate, name) != name:
            candidate, number = f"{_start(text, width - len(f'~{number}'))}~{number}", number + 1
        shown.append(candidate)
    return shown


def _without_middle(text: str, width: int) -> str:
    if columns(text) <= width:
        return text
    return f"{_start(text, width // 2)}…{_start(text[::-1], width - 1 - width // 2)[::-1]}"


def wrapped(text: str, width: int) -> str:
    """Text on lines of at most ``width`` columns, broken after a space, hyphen or underscore where there is one."""
    lines = []
    while columns(text) > width:
        line = _start(text, width)
        end = max(line.rfind(mark) + 1 for mark in " -_")
        end = end if end > width // 3 else len(line)
        lines.append(text[:end].rstrip())
        text = text[end:]
    return "\n".join([*lines, text])


def columns(text: str) -> int:
    """How wide a text is in a fixed-width font: a Chinese or Japanese character takes two columns."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _start(text: str, width: int) -> str:
    """The beginning of a text, at most ``width`` columns wide."""
    end = width
    while columns(text[:end]) > width:
        end -= 1
    return text[:end]


def save_png(figure: Figure, path: str | Path, colors: int | None = 128, source: str | None = None) -> None:
    """Write the figure as a PNG, with a palette (a third of the size) unless ``colors`` is None, as for photos.

    Args:
        source: what the figure shows; stored in the file.
    """
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    with _fonts(figure):
        canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    if colors:
        image = image.quantize(colors, dither=Image.Dither.NONE)
    data = io.BytesIO()
    text = PngInfo()
    if source is not None:
        text.add_itxt("Source", source)
    image.save(data, "PNG", optimize=True, pnginfo=text)
    write_bytes(Path(path), data.getvalue())


# Chart colors -> CSS variables of the page.
PAGE_COLORS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", BAR: "var(--bar)"}


Chart = Callable[[float], Figure]  # draws it in a width, in inches


def write_chart(chart: Chart, path: str | Path) -> str:
    """Write the chart as a PNG, for Markdown, and return it as an HTML element for pages of any width."""
    wide, narrow = chart(WIDE), chart(NARROW)
    save_png(narrow, path)
    if wide.get_figwidth() == narrow.get_figwidth():
        return as_svg(narrow)
    return as_svg(wide, "chart wide") + as_svg(narrow, "chart narrow")


def as_svg(figure: Figure, css: str = "chart") -> str:
    """The figure as an inline `<svg>`: transparent, with selectable text, the page's colors and tooltips.

    It is shown so wide that no text is below `READABLE` pixels; a narrower page lets the reader scroll it.
    """
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "livt_hf"}), _fonts(figure):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    for color, variable in PAGE_COLORS.items():
        text = text.replace(color, variable)
    text = re.sub(rf'<g id="{_TOOLTIP}(\w*)">', lambda tip: f"<g><title>{_from_hex(tip[1])}</title>", text)
    width = 72 * figure.get_figwidth()  # points
    narrowest = width * READABLE / smallest_font(figure)
    widest = max(narrowest, min(SHOWN, width * 1.75))
    style = f'<svg style="min-width: {narrowest:.0f}px; max-width: {widest:.0f}px"'
    return f'<div class="{css}">{text[text.index("<svg") :].replace("<svg", style, 1)}</div>'


def _from_hex(text: str) -> str:
    return escape_html(bytes.fromhex(text).decode())


def smallest_font(figure: Figure) -> float:
    """Size of the smallest text of a figure, in points."""
    return min(float(text.get_fontsize()) for text in figure.findobj(Text) if text.get_text())


@contextmanager
def _fonts(figure: Figure) -> Iterator[None]:
    """Draw the text of a figure with fonts for all of its characters; the log names those that no font has, once."""
    texts: list[Any] = figure.findobj(Text)
    needed = set("".join(text.get_text() for text in texts)) - {"\n"}
    families = ["DejaVu Sans", *_fallbacks(frozenset(needed))]
    for text in texts:
        text.set_fontfamily([*families, "sans-serif"])
    with warnings.catch_warnings(), rc_context({"font.family": [*families, "sans-serif"]}):
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def _fallbacks(characters: frozenset[str]) -> list[str]:
    """The installed fonts of `FALLBACK_FONTS` that are needed for these characters."""
    missing = characters - _characters("DejaVu Sans")
    families = []
    if missing:
        _add_new_fonts()
    for family in FALLBACK_FONTS:
        if missing & _characters(family):
            families.append(family)
            missing -= _characters(family)
    drawn = {character for character in missing if character.isprintable() and unicodedata.category(character) != "Mn"}
    if drawn:
        kinds = {unicodedata.name(character, "").startswith(_CJK) for character in drawn}
        _warn_of_missing("Noto Sans CJK (Debian: fonts-noto-cjk)" if kinds == {True} else "Noto Sans (fonts-noto)")
    return families


@functools.cache
def _characters(family: str) -> frozenset[str]:
    """The characters of a font; none if it is not installed."""
    try:
        path = font_manager.findfont(family, fallback_to_default=False)
    except ValueError:
        return frozenset()
    return frozenset(map(chr, font_manager.get_font(path).get_charmap()))


@functools.cache
def _add_new_fonts() -> None:
    """Fonts that were installed after matplotlib made its list of fonts, which it keeps in a file."""
    known = {font.fname for font in font_manager.fontManager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        try:
            font_manager.fontManager.addfont(path)
        except (OSError, RuntimeError, ValueError):  # a damaged file, or a format that matplotlib cannot read
            continue


@functools.cache
def _warn_of_missing(fonts: str) -> None:
    """Once for each advice."""
    logger.warning(f"charts: no installed font has some characters of the class names; install {fonts}")
