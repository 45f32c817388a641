"""`calibration_error` as an `evaluate` metric, which works offline, in `evaluate.combine` and distributed."""

from typing import Any

import datasets
import evaluate

from livt_hf.metrics.calibration import calibration_error

_DESCRIPTION = """
Expected and maximum calibration error in percent: the weighted mean and the largest difference between accuracy and
mean confidence over equal-width bins of confidence.
"""

_INPUTS = """
Args:
    predictions: predicted class of each image (int).
    references: true class of each image (int).
    confidences: probability of the predicted class of each image (float, 0 to 1).
    num_bins: number of bins (15 by default).
Returns:
    ece, mce: percent.
"""

_CITATION = """
@inproceedings{guo2017calibration,
  title = {On Calibration of Modern Neural Networks},
  author = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle = {ICML},
  year = {2017}
}
"""


class CalibrationError(evaluate.Metric):
    """``CalibrationError().compute(predictions=..., references=..., confidences=...)``."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "references": datasets.Value("int64"),
                    "confidences": datasets.Value("float64"),
                }
            ),
        )

    def _compute(
        self, predictions: Any, references: Any, confidences: Any, num_bins: int = 15, **unused: Any
    ) -> dict[str, float]:
        """``unused``: inputs of the other metrics in `evaluate.combine`."""
        return calibration_error(references, predictions, confidences, num_bins)
