"""The sentences that open a comparison: which row is best, how surely, and what to use."""

import pytest

from livt_hf.reporting.comparison_verdict import leaders, verdict

FEW = "fewer than 20 training images"
SURE = {"difference": 5.0, "interval": [1.26, 8.0], "significant": True}
UNSURE = {"difference": 1.0, "interval": [-1.0, 2.96], "significant": False}


def row(loss, overall, few, pretraining="MAE", seeds=(0,), post_hoc=None, std=None):
    means = {"macro_accuracy": overall, "few": few, "accuracy": 50.0}
    figures = {measure: {"mean": mean, "std": std} for measure, mean in means.items()}
    return {"loss": loss, "pretraining": pretraining, "parameters": 1, "seeds": seeds, "post_hoc": post_hoc, **figures}


def sentences(rows, overall=None, few=None):
    names = [row["loss"].upper() for row in rows]
    return verdict(rows, names, {"macro_accuracy": overall, "few": few}, FEW, classes=10, images=400)


def test_the_best_overall_and_on_rare_classes_are_named_with_their_lead():
    rows = [row("ce", 60.0, 10.0), row("bal_ce", 70.04, 40.0), row("bce", 69.0, 20.0)]
    assert sentences(rows, UNSURE, SURE) == [
        "Over all classes BAL_CE is best with a mean accuracy of 70.0 %, 1.0 points ahead of BCE; this difference is "
        "not significant (95 % interval over test images -1.0 to +3.0).",
        "On the rare classes (fewer than 20 training images) BAL_CE is best with 40.0 %, 20.0 points ahead of BCE; "
        "this difference is significant (95 % interval over test images +1.3 to +8.0).",
        "Use BAL_CE: --loss bal_ce.",
    ]


@pytest.mark.parametrize(
    ("seeds", "overall", "few", "advice"),
    [
        ((0,), UNSURE, UNSURE, "; the runner-up may be as good, and more seeds (--seeds 0,1,2) would tell."),
        ((0, 1, 2), UNSURE, UNSURE, "; the runner-up may be as good, and more test images would tell."),
        ((0,), SURE, UNSURE, "."),
        ((0,), None, None, "."),
    ],
)
def test_advice_where_one_row_is_best_in_both(seeds, overall, few, advice):
    rows = [row("bce", 60.0, 10.0, seeds=seeds), row("ce", 70.0, 40.0, seeds=seeds)]
    *_, last = sentences(rows, overall, few)
    assert last == f"Use CE: --loss ce{advice}"


def test_a_difference_that_another_seed_may_turn_around_is_not_relied_on():
    rows = [row("ce", 70.0, 40.0, seeds=(0, 1), std=3.0), row("bce", 65.1, 20.0, seeds=(0, 1), std=4.0)]
    first, second, last = sentences(rows, SURE, SURE)
    assert first.endswith("+1.3 to +8.0), but smaller than its spread over seeds (5.0 points).")
    assert second.endswith("+1.3 to +8.0).")
    assert last == "Use CE: --loss ce."
    rows[1]["few"]["mean"] = 38.0
    assert sentences(rows, SURE, SURE)[-1].endswith("more seeds (--seeds 0,1,2) would tell.")


def test_rows_that_may_be_guesses_are_not_ranked():
    rows = [row("ce", 12.9, 0.0), row("bal_ce", 10.0, 50.0)]
    assert sentences(rows, SURE, SURE) == [
        "No row is clearly better than guessing (10.0 % of 10 classes), so nothing can be said about the losses.",
        "Train longer, or start from a pretrained model.",
    ]
    rows[0]["macro_accuracy"]["mean"] = 13.0  # 10 + 1.96 * sqrt(10 * 90 / 400) = 12.94
    assert sentences(rows, SURE, SURE)[0].startswith("Over all classes CE is best")


def test_the_advice_names_the_options_of_a_post_hoc_method():
    rows = [row("ce", 71.0, 40.0, post_hoc="tau_norm"), row("ce", 70.0, 50.0, post_hoc="logit_adjustment")]
    assert sentences(rows, SURE, SURE)[-1].endswith(
        ": --loss ce, then livt adjust --tau_norm 1, or --loss ce, then livt adjust --target_prior uniform."
    )


def test_advice_where_another_row_is_best_on_rare_classes():
    rows = [row("ce", 71.0, 40.0), row("bal_ce", 70.0, 50.0)]
    split = (
        "Use CE for the best mean over classes, or BAL_CE if the rare classes matter most: --loss ce, or --loss bal_ce."
    )
    assert sentences(rows, SURE, SURE)[-1] == split
    # Not surely worse over all classes
    assert sentences(rows, UNSURE, SURE)[-1] == "Use BAL_CE, unless the rare classes matter little: --loss bal_ce."
    rows.append(row("bce", 70.5, 20.0))  # now the runner-up, so that the lead over BAL_CE is not known
    assert sentences(rows, UNSURE, SURE)[-1] == split
    rows = [row("bal_ce", 71.0, 40.0), row("bal_ce", 70.0, 50.0)]  # from two autoencoders
    assert sentences(rows, SURE, SURE)[-1].endswith(" if the rare classes matter most: --loss bal_ce.")


def test_a_difference_that_was_not_computed_is_not_called_anything():
    first, *_ = sentences([row("ce", 71.0, 40.0), row("bal_ce", 70.0, 50.0)])
    assert first.endswith("1.0 points ahead of BAL_CE; whether this difference is significant is not known.")


def test_an_adjusted_row_is_recommended_with_what_makes_it():
    rows = [row("ce", 60.0, 10.0), row("ce", 70.0, 50.0, post_hoc="logit_adjustment")]
    assert sentences(rows)[-1] == "Use CE: --loss ce, then livt adjust --target_prior uniform."


def test_the_runner_up_has_the_same_start_if_it_can():
    rows = [row("ce", 60.0, None), row("ce", 69.0, None, "none"), row("bal_ce", 70.0, None)]
    assert leaders(rows) == {"macro_accuracy": (2, 0)}
    assert leaders(rows[1:]) == {"macro_accuracy": (1, 0)}
    assert leaders(rows[:1]) == {}
    assert sentences(rows[:1]) == []


def test_results_without_macro_accuracy_are_ranked_by_accuracy():
    rows = [row("ce", None, None), row("bal_ce", None, None)]
    assert leaders(rows) == {"accuracy": (0, 1)}
    assert sentences(rows)[0].startswith("Over all images CE is best with an accuracy of 50.0 %, 0.0 points ahead")
