"""Results of an evaluation whose class names hold all that Markdown and HTML could trip over."""

GROUPS = {"many": 20, "few": 5, "by": "count"}
NAUGHTY = {"a|b": 30, "`<script>alert(1)</script>`\n# big": 10, "😀 [x](http://y) @me": 10, "$math$ _it_ a_b": 2}


def naughty_results():
    return {
        "model": "out/model",
        "parameters": 10,
        "dataset": "../my|images",
        "split": "test",
        "images": 4,
        "loss": "bal_ce",
        "tau": 1.0,
        "pretrained": None,
        "seed": 1,
        "accuracy": 50.0,
        "many": None,
        "medium": 25.0,
        "few": 100.0,
        "ece": 12.34,
        "mce": 40.0,
        "groups": {"definition": GROUPS, "sizes": {"many": 1, "medium": 2, "few": 1}},
        "per_class": dict(zip(NAUGHTY, (None, 0.0, 50.0, 100.0), strict=True)),
        "class_counts": NAUGHTY,
        "top5": None,
        "macro_accuracy": 50.0,
        "worst_class": 0.0,
        "harmonic_mean": 0.0,
        "pdc": 0.1234,
        "group_confusion": {
            "many": {"many": 0, "medium": 0, "few": 0},
            "medium": {"many": 1, "medium": 2, "few": 0},
            "few": {"many": 0, "medium": 0, "few": 1},
        },
        "confusion": {
            "a|b": {},
            list(NAUGHTY)[1]: {"a|b": 1},
            list(NAUGHTY)[2]: {list(NAUGHTY)[2]: 2},
            list(NAUGHTY)[3]: {list(NAUGHTY)[3]: 1},
        },
        "confused_pairs": [{"true": list(NAUGHTY)[1], "predicted": "a|b", "images": 1, "share": 100.0}],
        "hardest_images": [
            {
                "index": 0,
                "group": "few",
                "true": list(NAUGHTY)[3],
                "predicted": list(NAUGHTY)[1],
                "confidence": 90.0,
                "true_probability": 5.0,
                "path": "my|images/test/<b>.jpg",
            }
        ],
        "test_counts": dict(zip(NAUGHTY, (0, 1, 2, 1), strict=True)),
        "predicted_counts": dict(zip(NAUGHTY, (1, 0, 2, 1), strict=True)),
        "reliability": [{"low": 0.0, "high": 100.0, "count": 4, "accuracy": 50.0, "confidence": 62.34}],
        "tta": "fivecrop",
        "intervals": {
            "accuracy": [12.25, 87.75],
            "macro_accuracy": [10.0, 90.0],
            "many": None,
            "medium": [0.0, 50.04],
            "few": [2.5, 100.0],
            "ece": [0.0, 40.0],
            "method": {"level": 95.0, "resamples": 1000, "seed": 0, "stratified_by": "class", "exact": ["few"]},
        },
        "selective": {
            "thresholds": [
                {"min_score": 0.0, "coverage": 100.0, "accuracy": 50.0, "few_coverage": 100.0, "few_accuracy": 100.0},
                {"min_score": 0.95, "coverage": 0.0, "accuracy": None, "few_coverage": None, "few_accuracy": None},
            ],
            "curve": {
                "coverage": list(range(1, 101)),
                "accuracy": [100.0 - share / 2 for share in range(1, 101)],
                "few": [100.0] * 100,
            },
            "area": 74.75,
        },
        "coverage": {
            "classes": 4,
            "without_images": {"validation": list(NAUGHTY)[1:3], "test": ["a|b"]},
            "single_training_image": [],
            "left_out": {"test": {"<b>yak</b>": 1, "gnu": 1200}},
        },
        "command": "livt evaluate --model ```",
        "versions": {"livt_hf": "0.1.0"},
        "hardware": {"device": "cpu", "cpu": "Chip", "cores": 2},
    }
