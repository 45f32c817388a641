"""The first sentences of a report: exact texts, one case for each rule."""

import pytest

from livt_hf.reporting.findings import findings, next_step

COUNTS = {f"class {number}": 400 >> number for number in range(8)}  # 400, 200, ... 3


def results(accuracies=(90, 85, 80, 75, 70, 60, 50, 40), **changes):
    groups = dict(zip(("many", "medium", "few"), (87.5, 76.2, 50.0), strict=True))
    return {
        "images": 400,
        "split": "test",
        "accuracy": 68.75,
        "macro_accuracy": 75.0,
        **groups,
        "loss": "bal_bce",
        "pretrained": "mae",
        "class_counts": COUNTS,
        "per_class": dict(zip(COUNTS, map(float, accuracies), strict=True)),
        "intervals": {"accuracy": [64.0, 73.0]},
        "ece": 3.0,
        "reliability": [{"count": 400, "accuracy": 68.75, "confidence": 71.75}],
        "hardest_images": [{"confidence": 80.0}],
        **changes,
    }


LEVEL = {"many": 80.0, "few": 75.0}
HEAD_BEHIND = {"many": 60.0, "few": 75.0}


def test_three_sentences():
    assert findings(results()) == [
        "Of 400 test images of 8 classes, 68.8 % are classified correctly (95 % confidence interval 64.0–73.0 %); the "
        "mean over classes (macro accuracy) is 75.0 %.",
        "The classes with the lowest accuracy are class 7 (40.0 %), class 6 (50.0 %) and class 5 (60.0 %); rare "
        "classes are behind (few-shot 50.0 %, many-shot 87.5 %).",
        "What to try: collect more training images of the classes with the lowest accuracy.",
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"accuracies": (90, 0, 80, 75, 0, 0, 0, 40), **LEVEL},
            "4 classes have no image classified correctly, among them class 6, class 5 and class 4; rare classes are "
            "not behind (few-shot 75.0 %, many-shot 80.0 %).",
        ),
        ({"accuracies": [0] * 8}, "No image is classified correctly."),
        (
            {"accuracies": [100] * 8, **HEAD_BEHIND},
            "Every image is classified correctly; frequent classes are behind (few-shot 75.0 %, many-shot 60.0 %).",
        ),
        (
            {"many": 7.1, "few": 1.0},  # a few points, but less than half
            "The classes with the lowest accuracy are class 7 (40.0 %), class 6 (50.0 %) and class 5 (60.0 %); rare "
            "classes are behind (few-shot 1.0 %, many-shot 7.1 %).",
        ),
        (
            {"many": None, "medium": None},  # one group: the halves of the classes
            "The classes with the lowest accuracy are class 7 (40.0 %), class 6 (50.0 %) and class 5 (60.0 %); rare "
            "classes are behind (the rarer half 55.0 %, the more frequent half 82.5 %).",
        ),
        (
            {
                "class_counts": {"a": 5, "b\u202e": 5},
                "per_class": {"a": 90.0, "b\u202e": 30.0},
                "many": None,
                "medium": None,
            },
            "The class with the lowest accuracy is b\\u202e (30.0 %); rare and frequent classes cannot be compared.",
        ),
        (
            {"class_counts": dict(zip("abcdef", (60, 40, 20, 10, 6, 3), strict=True))}
            | {"per_class": {"a": 0.0, "b": 0.0, "c": 0.0, "d": 35.0, "e": 0.0, "f": None}}
            | {"many": None, "medium": 0.0, "few": 17.5},
            "4 classes have no image classified correctly, among them e, c and b; frequent classes are behind ("
            "few-shot 17.5 %, medium-shot 0.0 %).",
        ),
    ],
)
def test_the_classes_that_are_bad(changes, sentence):
    assert findings(results(**changes))[1] == sentence


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"intervals": {"accuracy": [50.0, 71.0]}}, "test on more images, since so few leave the accuracy uncertain"),
        ({"intervals": None, "images": 99}, "test on more images, since so few leave the accuracy uncertain"),
        (
            {"loss": "ce"},
            "fine-tune with a balanced loss (--loss bal_bce, or bal_ce for short training), which helps rare classes",
        ),
        (
            {
                **HEAD_BEHIND,
                "macro_accuracy": 13.0,
                "intervals": {"accuracy": [9.0, 15.0], "macro_accuracy": [11.0, 15.0]},
            },
            "train longer, or start from a pretrained model, since this may be no better than guessing",
        ),
        (
            {
                **HEAD_BEHIND,
                "macro_accuracy": 14.0,
                "intervals": {"accuracy": [9.0, 15.0], "macro_accuracy": [13.0, 15.0]},
            },
            "fine-tune with a smaller --tau, or livt adjust --target_prior with the class frequencies to expect",
        ),
        (
            {"loss": "ce", "macro_accuracy": 12.5, "intervals": {"accuracy": [9.0, 15.0]}, "ece": 40.0},
            "train longer, with a balanced loss (--loss bal_bce, or bal_ce for short training), which helps rare "
            "classes",
        ),
        (
            HEAD_BEHIND,
            "fine-tune with a smaller --tau, or livt adjust --target_prior with the class frequencies to expect",
        ),
        (
            {"pretrained": None, "macro_accuracy": 60.0},
            "start from a pretrained model (--pretrained facebook/dinov2-small for photos, or livt pretrain)",
        ),
        (
            {"macro_accuracy": 60.0},
            "train longer, or start from a model of many images (--pretrained facebook/dinov2-small for photos)",
        ),
        (
            {"macro_accuracy": 60.0, "pretrained": "facebook/dinov2-small", **LEVEL},
            "collect more training images of the classes with the lowest accuracy",
        ),
        (
            {"loss": "ce", "adjustment": {"target_prior": "uniform", "temperature": 1.0}},
            "collect more training images of the classes with the lowest accuracy",
        ),
        (
            {**LEVEL, "hardest_images": [{"confidence": 95.0}]},
            "look at the most confident mistakes below, and check the labels with livt dataset check --model",
        ),
        (LEVEL, "nothing stands out; livt compare shows whether another loss is better"),
        (
            {**LEVEL, "ece": 12.3},
            "calibrate with livt adjust --temperature fit, since confidences are too high (ECE 12.3 %)",
        ),
        (
            {**LEVEL, "ece": 12.3, "reliability": [{"count": 4, "accuracy": 80.0, "confidence": 67.7}]},
            "calibrate with livt adjust --temperature fit, since confidences are too low (ECE 12.3 %)",
        ),
        (
            {**LEVEL, "ece": 12.3, "adjustment": {"target_prior": None, "temperature": 1.5}},
            "nothing stands out; livt compare shows whether another loss is better",
        ),
        (
            {"ece": 12.3},
            "collect more training images of the classes with the lowest accuracy; calibrate with livt adjust "
            "--temperature fit, since confidences are too high (ECE 12.3 %)",
        ),
    ],
)
def test_what_to_try(changes, step):
    assert next_step(results(**changes)) == f"What to try: {step}."
