"""`long_tail_accuracy` as an `evaluate` metric, which works offline, in `evaluate.combine` and distributed."""

from typing import Any

import datasets
import evaluate

from livt_hf.metrics.accuracy import long_tail_accuracy

_DESCRIPTION = """
Top-1 accuracy in percent along a long-tailed class distribution: overall, per class, and as the mean over the classes
of the many-, medium- and few-shot groups, which are defined by the number of training images.
"""

_INPUTS = """
Args:
    predictions: predicted class of each image (int).
    references: true class of each image (int).
    class_counts: number of training images of each class, {name: count} or a list in label order. Required.
    groups: {"many": 100, "few": 20, "by": "count"} (the default), or "by": "rank" for the largest and smallest ones.
Returns:
    accuracy, many, medium, few: percent, None for a group without tested classes.
    macro_accuracy, worst_class, harmonic_mean: over the tested classes, percent.
    per_class: {class name: percent}.
    groups: the definition used, and the number of classes in each group (sizes) and of those tested (measured).
"""

_CITATION = """
@inproceedings{liu2019large,
  title = {Large-Scale Long-Tailed Recognition in an Open World},
  author = {Liu, Ziwei and Miao, Zhongqi and Zhan, Xiaohang and Wang, Jiayun and Gong, Boqing and Yu, Stella X.},
  booktitle = {CVPR},
  year = {2019}
}
"""


class LongTailAccuracy(evaluate.Metric):
    """``LongTailAccuracy().compute(predictions=..., references=..., class_counts=...)``."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(
        self, predictions: Any, references: Any, class_counts: Any = None, groups: Any = None, **unused: Any
    ) -> dict[str, Any]:
        """``unused``: inputs of the other metrics in `evaluate.combine`."""
        if class_counts is None:
            raise ValueError("class_counts: pass the training images of each class, compute(..., class_counts={...})")
        return long_tail_accuracy(references, predictions, class_counts, groups)
