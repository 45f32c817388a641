"""Every chart in both widths: no text too small to read or beyond the edge of the picture."""

from functools import partial

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from livt_hf.reporting import charts
from livt_hf.reporting.chart_style import NARROW, WIDE, smallest_font
from livt_hf.reporting.class_tables import confusion_figure
from livt_hf.reporting.comparison_charts import (
    accuracy_figure,
    convergence_figure,
    model_size_figure,
    quickstart_figure,
)

DEFINITION = {"many": 100, "few": 20, "by": "count"}
SHOWN = {WIDE: 860, NARROW: 358}  # pixels: on the page of a report, and on a phone 400 pixels wide


def class_charts(classes: int) -> dict:
    names = [f"Class number {label:,}" for label in range(classes)]
    counts = {name: max(1000 // (place + 1), 2) for place, name in enumerate(names)}
    accuracy = {name: None if place == 3 else 100 / (place + 1) for place, name in enumerate(names)}
    tested = dict.fromkeys(names, 5)
    results = {
        "class_counts": counts,
        "groups": {"definition": DEFINITION},
        "test_counts": tested,
        "predicted_counts": tested,
        "per_class": accuracy,
        "confusion": {name: {name: 2, names[0]: 3} for name in names[1:]},
    }
    return {
        "class_frequency": partial(charts.class_frequency_figure, counts, accuracy, DEFINITION),
        "predictions": partial(charts.prediction_figure, counts, tested, tested, DEFINITION),
        "confusion": partial(confusion_figure, results),
    }


def run_charts() -> dict:
    measures = {"many": 100.0, "medium": 55.5, "few": 10.0, "accuracy": 60.0}
    bars = [{"name": name, **measures, "intervals": {"few": (5.0, 15.0)}} for name in ("Bal-BCE\nMAE, balanced", "CE")]
    words = {"many": "more than 100 training images", "medium": "20 to 100 training images"}
    rows = [
        {"loss": loss, "pretrained": start, **measures, "groups": {"definition": DEFINITION}, "intervals": {}}
        for loss, start in (("bce", "mae"), ("bal_bce", "mae"), ("bal_bce", None))
    ]
    curves = {"Bal-BCE": [{1.0: 20.0, 2.0: 50.0}, {1.0: 30.0, 2.0: 60.0}], "CE": [{1.0: 20.0, 2.0: 49.0}]}
    sizes = [
        {"name": name, "pretraining": "MAE", "parameters": size, "accuracy": {"mean": size / 1e6, "std": 2.0}}
        for name in ("Bal-BCE", "CE")
        for size in (21_700_000, 85_800_000)
    ]
    lines = [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}, {"epoch": 2, "probe_accuracy": 40.0}]
    return {
        "accuracy": partial(accuracy_figure, bars, "Test accuracy by shot group", words, "standard deviation"),
        "quickstart": partial(quickstart_figure, rows),
        "convergence": partial(convergence_figure, {"MAE": curves, "no pretraining": curves}, "validation"),
        "model_size": partial(model_size_figure, sizes),
        "loss_curve": partial(charts.loss_curve_figure, lines),
    }


ALL = run_charts() | {
    f"{name} of {classes} classes": chart
    for classes in (4, 15, 43, 300)
    for name, chart in class_charts(classes).items()
}


@pytest.mark.parametrize("width", SHOWN)
@pytest.mark.parametrize("name", ALL)
def test_all_text_can_be_read(name, width):
    figure = ALL[name](width)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert smallest_font(figure) * SHOWN[width] / (72 * figure.get_figwidth()) >= 11  # pixels
    drawn = figure.get_tightbbox(canvas.get_renderer())  # inches
    assert drawn.x0 >= -0.01
    assert drawn.x1 <= figure.get_figwidth() + 0.01
    assert drawn.y0 >= -0.01
    assert drawn.y1 <= figure.get_figheight() + 0.01


def test_a_narrow_chart_names_as_many_classes_as_fit():
    named = {classes for classes in (10, 18, 19, 45, 46) if charts.are_named(classes, NARROW)}
    assert named == {10, 18}
    assert [charts.are_named(classes, WIDE) for classes in (45, 46)] == [True, False]
    for classes, drawn in ((15, True), (43, False)):
        labels = class_charts(classes)["predictions"](NARROW).axes[0].get_xticklabels()
        assert ("Class number 0" in {label.get_text() for label in labels}) is drawn
