"""Verdicts on the paper's statements by their rule, and the tables beside them."""

import json

import pytest

from documents.intervals import Estimate
from documents.records import RunSet
from documents.statements import STATEMENTS, difference_words, size_table, statements_table, verdict

UP, DOWN, UNSURE = Estimate(3.0, 1.0, 3), Estimate(-3.0, 1.0, 3), Estimate(1.0, 2.0, 3)
ONE_UP, ONE_DOWN = Estimate(3.0, None, 1), Estimate(-3.0, None, 1)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([UP, UP], "**holds** (2 of 2)"),
        ([UP, None, ONE_UP], "**holds** (1 of 1)"),
        ([UP, ONE_DOWN], "**in part** (1 of 1, 1 contrary)"),
        ([UP, UNSURE], "**in part** (1 of 2)"),
        ([UP, DOWN], "**in part** (1 of 2)"),
        ([UNSURE, DOWN], "**not seen** (0 of 2)"),
        ([UNSURE, ONE_UP], "**not seen** (0 of 1)"),
        ([ONE_UP, ONE_UP], "too few runs"),
        ([None, None], "–"),
    ],
)
def test_the_rule(differences, expected):
    assert verdict(1, differences) == expected
    mirrored = [one and Estimate(-one.value, one.half, one.runs) for one in differences]
    assert verdict(-1, mirrored) == expected
    assert verdict(0, differences) == "–"  # the paper states no difference


def test_differences_in_words():
    assert difference_words(Estimate(15.62, 1.71, 3)) == "**+15.6** (+13.9 to +17.3)"
    assert difference_words(Estimate(-0.04, 1.0, 3)) == "+0.0 (−1.0 to +1.0)"
    assert difference_words(ONE_DOWN) == "*−3.0*"
    assert difference_words(None) == "–"


def test_the_papers_differences_are_as_it_prints_them():
    values = [None if one.published is None else round(one.published, 1) for one in STATEMENTS]
    assert values == [-3.8, 8.6, 25.4, 5.6, 24.3, 0.8, 22.9, None, None, -3.1, -4.7]
    assert all(one.published is None or one.published * one.sign > 0 for one in STATEMENTS if one.sign)


def run(loss, pretrained, seed, accuracy, few, parameters=1_000_000):
    name = f"{loss}-seed{seed}-{pretrained}-{parameters}"
    figures = {"many": 90.0, "medium": 50.0, "few": few, "accuracy": accuracy, "macro_accuracy": accuracy}
    figures |= {"ece": 5.0, "mce": 9.0}
    kind = {"name": name, "loss": loss, "pretraining": "MAE", "pretrained": pretrained, "post_hoc": None}
    return {**kind, "parameters": parameters, "seed": seed, **figures}


def written(folder, runs):
    folder.mkdir()
    comparison = {"images": 1000, "groups": {"sizes": {"many": 3, "medium": 4, "few": 3}}, "runs": runs}
    (folder / "runs.json").write_text(json.dumps(comparison))
    return RunSet(folder, folder.name, folder.name, "")


def test_statements_are_paired_by_autoencoder_and_seed(tmp_path):
    runs = [run("ce", start, seed, 60.0 + seed, 20.0 + 5 * seed) for start in ("a", "b") for seed in (0, 1)]
    runs += [run("bce", start, seed, 50.0 + seed, 1.0 + 5 * seed) for start in ("a", "b") for seed in (0, 1)]
    runs += [run("ce", None, 0, 40.0, 5.0)]
    rows = statements_table([written(tmp_path / "set", runs)]).splitlines()[2:]
    table = {cells[1].strip(): [cell.strip() for cell in cells[2:5]] for cells in (row.split("|") for row in rows)}
    # the differences of all four pairs are -19, so that the test images alone make the interval: 300 in the group, with
    # 22.5 and 3.5 % right: sqrt((4.7159 ** 2 + 2.1885 ** 2)) = 5.2
    few = table["BCE loses the tail: few-shot, BCE − CE"]
    assert few == ["−3.8", "**holds** (1 of 1)", "**−19.0** (−24.2 to −13.8)"]
    assert table["Pretraining helps: all, CE, MAE − none"] == ["+22.9", "too few runs", "*+20.5*"]  # 60.5 - 40
    assert table["Bal-BCE mends BCE: all, Bal-BCE − BCE"] == ["+8.6", "–", "–"]


def test_sizes_are_listed_beside_the_papers_from_small_to_large(tmp_path):
    runs = [run("ce", "mae-b", 0, 44.0, 9.0, 85_800_000), run("ce", "mae-ti", 0, 30.0, 9.0, 5_500_000)]
    runs.append(run("bal_bce", "mae-ti", 0, 41.0, 9.0, 5_500_000))
    table = size_table([written(tmp_path / "sizes", runs)]).splitlines()
    assert table[2] == (
        "| ImageNet-LT (paper) | 5.7 / 22 / 86 | 37.0 / 49.5 / 54.5 | 21.6 / 39.8 / 52.4 | 40.8 / 54.1 / 60.9 |"
    )
    assert table[3] == "| sizes | 5.5 / 85.8 | 30.0 / 44.0 | – / – | 41.0 / – |"
