"""The common look of charts: names in any script, text that can be read, tooltips."""

import logging
import re
import warnings

import pytest
from matplotlib.figure import Figure

from livt_hf.reporting import chart_style
from livt_hf.reporting.chart_style import add_tooltip, as_svg, save_png, short_names, smallest_font, wrapped


def chart(*names):
    figure = Figure(figsize=(4, 3))
    axes = figure.subplots()
    for patch, name in zip(axes.bar(range(len(names)), 1), names, strict=True):
        add_tooltip(patch, name)
    axes.set_xticks(range(len(names)), names, parse_math=False, fontsize=9)
    return figure


@pytest.fixture
def fonts(monkeypatch):
    """Fonts with few characters: DejaVu Sans, the one set here and no other; warnings appear anew."""
    characters = {"DejaVu Sans": frozenset("abc 0123456789.−")}
    monkeypatch.setattr(chart_style, "_characters", lambda family: characters.get(family, frozenset()))
    chart_style._warn_of_missing.cache_clear()
    yield characters
    chart_style._warn_of_missing.cache_clear()


def test_names_that_the_first_font_lacks_are_drawn_with_one_that_has_them(fonts):
    fonts["Yu Gothic"] = frozenset("日本")
    fonts["Malgun Gothic"] = frozenset("한국")
    assert chart_style._fallbacks(frozenset("abc")) == []
    assert chart_style._fallbacks(frozenset("a日")) == ["Yu Gothic"]
    assert chart_style._fallbacks(frozenset("日한")) == ["Yu Gothic", "Malgun Gothic"]


@pytest.mark.parametrize(
    ("name", "advice"),
    [("日本", "Noto Sans CJK (Debian: fonts-noto-cjk)"), ("日हिन्दी", "Noto Sans (fonts-noto)")],
)
def test_characters_without_a_font_are_told_once_and_only_in_the_log(fonts, caplog, tmp_path, name, advice):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        for _ in range(2):
            save_png(chart("a", name), tmp_path / "chart.png")
            as_svg(chart(name))
    expected = f"charts: no installed font has some characters of the class names; install {advice}"
    assert caplog.messages == [expected]


def test_long_names_lose_their_middle_and_stay_different():
    assert short_names(["a\nb", "God-Morgon-Apple-Juice", "God-Morgon-Orange-Juice"], 16) == [
        "a b",
        "God-Morg…e-Juice",
        "God-Morg…e-Jui~2",
    ]
    assert short_names(["x" * 30] * 2, 8) == ["xxxx…xxx"] * 2  # the same class twice, as in titles of mistakes
    assert short_names(["evil\u202eeman"]) == ["evil\\u202eeman"]
    assert short_names(["長い名前の分類"], 9) == ["長い…分類"]


def test_names_break_after_a_hyphen_or_a_space():
    assert wrapped("God-Morgon-Apple-Juice", 12) == "God-Morgon-\nApple-Juice"
    assert wrapped("→ Extraordinarily", 10) == "→ Extraord\ninarily"
    assert wrapped("長い名前の分類", 8) == "長い名前\nの分類"


def test_a_chart_in_a_page_is_never_too_narrow_to_read_and_has_tooltips():
    figure = chart('a "<b>"', "b\u202e")
    svg = as_svg(figure)
    assert smallest_font(figure) == 9
    assert svg.startswith('<div class="chart"><svg style="min-width: 352px; max-width: 504px"')  # 4 x 72 x 11 / 9
    assert re.findall("<title>(.*?)</title>", svg) == ["a &quot;&lt;b&gt;&quot;", "b\\u202e"]
    assert "tooltip:" not in svg
