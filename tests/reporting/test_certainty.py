"""The chart of accuracy over coverage: labels at the ends of its lines that do not overlap."""

import pytest

from livt_hf.reporting.certainty import selective_figure


@pytest.mark.parametrize(
    ("everything", "few", "places"),
    [(90.0, 50.0, [90.0, 50.0]), (60.0, 60.0, [66.985, 58.995]), (8.0, 1.0, [26.01, 8.67]), (90.0, None, [90.0])],
)
def test_labels_are_apart_and_above_the_axis(everything, few, places):
    curve = {"coverage": [50, 100], "accuracy": [everything] * 2, "few": few if few is None else [few] * 2}
    (axes,) = selective_figure({"curve": curve}).axes
    assert [text.get_position()[1] for text in axes.texts] == pytest.approx(places, abs=0.01)
    assert axes.texts[0].get_text() == f"all images\n{everything:.1f} %"
