"""The charts that compare runs: what they say, with every text in its place."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from livt_hf.reporting.chart_style import NARROW
from livt_hf.reporting.comparison_charts import (
    accuracy_figure,
    convergence_figure,
    model_size_figure,
    quickstart_figure,
)

GROUPS = {"definition": {"many": 100, "few": 20, "by": "count"}}


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def shown(figure, names):
    """The texts with these names that are drawn; ticks have a hidden second label, shared axes hidden ones."""
    labels = [label for axes in figure.axes[:1] for label in axes.get_yticklabels() if label.get_text() in names]
    return labels or [text for axes in figure.axes for text in axes.texts if text.get_text() in names]


def overlapping(figure, names):
    """Pairs of these texts that overlap, and those that leave the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found = shown(figure, names)
    boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in found]  # without an annotation's line
    pairs = [
        (one.get_text(), other.get_text())
        for place, one in enumerate(found)
        for at, other in enumerate(found[:place])
        if boxes[place].overlaps(boxes[at])
    ]
    return pairs + [
        text.get_text() for text, box in zip(found, boxes, strict=True) if box.x1 > figure.bbox.x1 or box.y0 < 0
    ]


def result(loss, few, pretrained="mae"):
    measures = {"many": 100.0, "medium": None, "few": few, "accuracy": few + 10.0}
    return {"loss": loss, "pretrained": pretrained, "groups": GROUPS, **measures}


def test_the_quickstarts_title_tells_its_story_in_its_own_numbers():
    rows = [result("ce", 42.5), result("bce", 0.0), result("bal_ce", 73.5), result("bal_bce", 63.5)]
    rows.append(result("bal_bce", 10.5, None) | {"intervals": {"few": [6.0, 16.0]}})
    figure = quickstart_figure(rows)
    assert figure.get_suptitle() == (
        "Rare digits recognized: 0.0 to 42.5 % with standard losses, 63.5 to 73.5 %\n"
        "with balanced losses, 10.5 % without masked pretraining"
    )
    names = ["CE (standard)", "BCE (standard)", "Bal-CE (balanced)", "Bal-BCE (balanced)"]
    names.append("Bal-BCE,\nnot pretrained")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names
    assert "few-shot\nfewer than 20\ntraining images" in texts(figure)
    assert figure.get_supxlabel() == "accuracy (%); lines: 95 % confidence intervals"
    few = figure.axes[2]
    assert [bar.get_width() for bar in few.patches] == [42.5, 0.0, 73.5, 63.5, 10.5]
    assert [list(line.get_xdata()) for line in few.lines] == [[6.0, 16.0]]
    assert {text.get_text(): text.get_weight() for text in few.texts} == {
        "42.5": "normal",
        "0.0": "normal",
        "73.5": "bold",
        "63.5": "normal",
        "10.5": "normal",
    }
    assert [text.get_text() for text in figure.axes[1].texts] == ["–"] * 5  # not measured
    narrow = quickstart_figure(rows, NARROW)
    assert [axes.get_title(loc="left").split("\n")[0] for axes in narrow.axes] == ["few-shot", "all images"]
    assert narrow.axes[0].get_yticklabels()[-1].get_text() == "Bal-BCE,\nnot pretrained"


@pytest.mark.parametrize("panels", [("",), ("MAE", "no pretraining", "mae_tail, 21.7M")])
def test_lines_are_named_at_their_ends_without_overlap(panels):
    losses = [f"loss {number}" for number in range(10)]
    curves = {
        loss: [{1.0: 30.0, 2.0: 95.0 - number / 10}, {1.0: 20.0, 2.0: 95.0}] for number, loss in enumerate(losses)
    }
    figure = convergence_figure(dict.fromkeys(panels, curves), "validation")
    assert [text.get_text() for text in shown(figure, losses)] == losses[::-1] * len(panels)
    assert figure.get_suptitle() == "Accuracy on the validation split during training"
    assert {"epoch", "validation accuracy (%)"} <= set(texts(figure))
    assert overlapping(figure, losses) == []


def test_model_sizes_are_named_at_the_ends_of_their_lines():
    rows = [
        {"name": name, "pretraining": start, "parameters": size, "accuracy": {"mean": 50.0 + size / 1e6, "std": None}}
        for name in ("CE", "Bal-BCE")
        for start in ("MAE", "none")
        for size in (1_000_000, 4_000_000)
    ]
    figure = model_size_figure(rows)
    names = [f"{loss}, {start}" for loss in ("CE", "Bal-BCE") for start in ("pretrained", "from scratch")]
    assert sorted(text.get_text() for text in shown(figure, names)) == sorted(names)
    assert overlapping(figure, names) == []


def test_names_of_two_lines_do_not_overlap_in_many_rows():
    names = [f"Bal-BCE\nrun {number}, 21.7M" for number in range(12)]
    measures = {"many": 100.0, "medium": 50.0, "few": 10.0, "accuracy": 60.0, "intervals": {}}
    figure = accuracy_figure([{"name": name, **measures} for name in names], "title")
    assert len(shown(figure, names)) == 12
    assert overlapping(figure, names) == []
