"""In: labels, predictions and confidences of a test set, and the class counts of the training set.

Out: accuracy along the long tail with confidence intervals, calibration and confusion, in percent. The functions need
numpy only; the `evaluate` metrics ``LongTailAccuracy`` and ``CalibrationError`` are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..prior import describe_groups
    from .accuracy import long_tail_accuracy
    from .bootstrap import bootstrap_intervals, paired_differences
    from .calibration import calibration_error, error_of_bins, reliability_bins
    from .confusion import class_confusion, confused_pairs, group_confusion, hardest_images, prediction_calibration
    from .modules.calibration_error.calibration_error import CalibrationError
    from .modules.long_tail_accuracy.long_tail_accuracy import LongTailAccuracy
    from .selective import selective_accuracy

__all__ = [
    "CalibrationError",
    "LongTailAccuracy",
    "bootstrap_intervals",
    "calibration_error",
    "class_confusion",
    "confused_pairs",
    "describe_groups",
    "error_of_bins",
    "group_confusion",
    "hardest_images",
    "long_tail_accuracy",
    "paired_differences",
    "prediction_calibration",
    "reliability_bins",
    "selective_accuracy",
]

_MODULE_OF = {
    "CalibrationError": ".modules.calibration_error.calibration_error",
    "LongTailAccuracy": ".modules.long_tail_accuracy.long_tail_accuracy",
    "bootstrap_intervals": ".bootstrap",
    "calibration_error": ".calibration",
    "class_confusion": ".confusion",
    "confused_pairs": ".confusion",
    "describe_groups": "..prior",
    "error_of_bins": ".calibration",
    "group_confusion": ".confusion",
    "hardest_images": ".confusion",
    "long_tail_accuracy": ".accuracy",
    "paired_differences": ".bootstrap",
    "prediction_calibration": ".confusion",
    "reliability_bins": ".calibration",
    "selective_accuracy": ".selective",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
