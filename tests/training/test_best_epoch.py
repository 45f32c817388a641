"""``--keep_best`` and ``--early_stopping``: which weights become the result, also of interrupted runs."""

import json
import shutil

import pytest
import torch

from helpers.cli import run_stage, the_error
from helpers.images import write_images
from helpers.training import QUIET, finetune_arguments, log_lines, same_weights, stop_at
from livt_hf.cli import main
from livt_hf.evaluation.evaluate import evaluate_checkpoint
from livt_hf.training.finetuning import finetune
from livt_hf.training.stage_run import StageRun

pytestmark = pytest.mark.usefixtures("unrendered")

STEPS_PER_EPOCH = 10  # of digits, at batch size 32
# A high rate, without augmentation and mixup: accuracy goes up and down.
UNSTEADY = {
    "seed": 1,
    "max_steps": 60,
    "base_lr": 0.03,
    "min_lr": 0.004,
    "warmup_epochs": 0,
    "rand_augment": "none",
    "mixup": 0,
    "cutmix": 0,
    "random_erasing": 0,
    "drop_path": 0.0,
    "keep_best": "few",
    "save_every": 12,
    "save_total_limit": 10,
}


def scores(folder, metric="few"):
    name = f"eval_{metric}"
    return {line["step"]: line[name] for line in log_lines(folder) if name in line}


def kept_in(folder):
    return json.loads((folder / "run.json").read_text())["kept"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run whose best epoch is neither the first nor the last."""
    folder = tmp_path_factory.mktemp("whole")
    finetune(finetune_arguments(folder, **UNSTEADY, eval_every=1), QUIET)
    best = max(scores(folder), key=scores(folder).get)
    assert STEPS_PER_EPOCH < best < 60
    return folder


def test_the_best_validation_epoch_is_the_result(whole, tmp_path):
    by_step = scores(whole)
    best = max(by_step, key=by_step.get)  # the first of equal ones
    kept = {"metric": "few", "epoch": best / STEPS_PER_EPOCH, "step": best, "value": by_step[best]}
    for file in ("run.json", "results.json"):
        assert json.loads((whole / file).read_text())["kept"] == kept
    assert f"- Weights: those of epoch {kept['epoch']:g}, the best on the validation split" in (
        whole / "README.md"
    ).read_text(encoding="utf-8")
    measured = evaluate_checkpoint(whole, "digits", split="validation", output_dir=tmp_path)
    assert measured["few"] == pytest.approx(by_step[best])
    assert not list(whole.glob(".best*"))
    assert scores(whole).keys() == set(range(10, 61, 10))


def test_without_the_option_the_last_epoch_is_the_result(whole, tmp_path):
    options = {**UNSTEADY, "keep_best": None}
    finetune(finetune_arguments(tmp_path / "last", **options), QUIET)
    assert scores(tmp_path / "last") == scores(whole)
    assert not same_weights(tmp_path / "last", whole)
    assert "kept" not in json.loads((tmp_path / "last" / "results.json").read_text())


@pytest.mark.slow
def test_a_resume_without_the_weights_of_earlier_epochs_says_so(whole, tmp_path, caplog):
    shutil.copytree(whole / "checkpoint-36", tmp_path / "checkpoint-36")
    finetune(finetune_arguments(tmp_path, **UNSTEADY), QUIET)
    assert "keep_best: weights of epochs before step 36 are not saved any more" in caplog.text
    assert kept_in(tmp_path)["step"] == max((40, 50, 60), key=scores(whole).get)


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", [pytest.param(22, marks=pytest.mark.slow), 43])
def test_an_interrupted_run_keeps_the_same_epoch(whole, tmp_path, monkeypatch, step):
    """Killed between checkpoints (every 12 steps) and evaluations (every 10)."""
    optimizer_step, steps = torch.optim.AdamW.step, []

    def killed(self, *args, **kwargs):
        steps.append(None)
        if len(steps) == step:
            raise Killed
        return optimizer_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", killed)
        with pytest.raises(Killed):
            finetune(finetune_arguments(tmp_path, **UNSTEADY), QUIET)
    finetune(finetune_arguments(tmp_path, **UNSTEADY), QUIET)
    assert same_weights(tmp_path, whole)
    assert (
        json.loads((tmp_path / "run.json").read_text())["kept"] == json.loads((whole / "run.json").read_text())["kept"]
    )
    assert log_lines(tmp_path) == log_lines(whole)


@pytest.mark.slow
def test_a_stopped_run_keeps_the_same_epoch(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(45, patch)
        assert finetune(finetune_arguments(tmp_path, **UNSTEADY), QUIET) is None
    assert list(tmp_path.glob(".best-*"))
    finetune(finetune_arguments(tmp_path, **UNSTEADY), QUIET)
    assert same_weights(tmp_path, whole)


@pytest.mark.parametrize("options", [{"ema": 0.8}, {"stage": "classifier", "classifier_method": "lws", "loss": "ce"}])
def test_averaged_and_scaled_weights_are_kept_as_they_were_evaluated(whole, tmp_path, options):
    if "stage" in options:
        options = {**options, "pretrained": str(whole)}
    finetune(finetune_arguments(tmp_path / "run", **{**UNSTEADY, "keep_best": "macro", **options}), QUIET)
    by_step = scores(tmp_path / "run", "macro_accuracy")
    kept = kept_in(tmp_path / "run")
    assert (kept["step"], kept["value"]) == (max(by_step, key=by_step.get), max(by_step.values()))
    measured = evaluate_checkpoint(tmp_path / "run", "digits", split="validation", output_dir=tmp_path / "report")
    assert measured["macro_accuracy"] == pytest.approx(kept["value"])


def test_early_stopping(tmp_path, caplog):
    caplog.set_level("INFO", "livt_hf")
    options = {**UNSTEADY, "base_lr": 1e-30, "min_lr": 1e-30, "keep_best": "accuracy", "early_stopping": 2}
    finetune(finetune_arguments(tmp_path, **options), QUIET)
    assert list(scores(tmp_path)) == [10, 20, 30]
    kept = json.loads((tmp_path / "results.json").read_text())["kept"]
    assert (kept["epoch"], kept["stopped_at"]) == (1.0, 30)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "; training was stopped early, at step 30." in card
    assert "| steps | 30 |" in card
    caplog.clear()
    finetune(finetune_arguments(tmp_path, **options), QUIET)
    assert "finished after 30 steps; nothing to do" in caplog.text
    assert list(scores(tmp_path)) == [10, 20, 30]


def test_a_run_that_stopped_early_and_was_killed_before_it_was_saved_trains_no_further(tmp_path, monkeypatch):
    options = {**UNSTEADY, "base_lr": 1e-30, "min_lr": 1e-30, "keep_best": "accuracy", "early_stopping": 2}
    args = finetune_arguments(tmp_path, **{**options, "save_every": 10})

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StageRun, "save", killed)
        with pytest.raises(Killed):
            finetune(args, QUIET)
    assert (tmp_path / "checkpoint-30").is_dir()
    before = log_lines(tmp_path)
    finetune(args, QUIET)
    assert log_lines(tmp_path) == before
    assert (kept_in(tmp_path)["step"], kept_in(tmp_path)["stopped_at"]) == (10, 30)


def test_what_cannot_choose_an_epoch_is_refused_before_training(tmp_path, capsys):
    write_images(tmp_path / "images")
    data, output = tmp_path / "images", tmp_path / "out"
    assert "keep_best: the dataset has no validation split" in the_error(
        capsys, run_stage("finetune", data, output, keep_best="accuracy")
    )
    assert "early_stopping: by which accuracy? name it with --keep_best" in the_error(
        capsys, run_stage("finetune", data, output, early_stopping=3)
    )
    assert "keep_best: it would choose the epoch on the test split" in the_error(
        capsys, run_stage("finetune", data, output, keep_best="few", eval_split="test")
    )
    assert "keep_best: no validation image is of a few-shot class" in the_error(
        capsys, run_stage("finetune", "digits", output, keep_best="few", few=0)
    )
    assert "--keep_best" in the_error(capsys, main(["finetune", "--load_best_model_at_end", "True"]))
    assert "--early_stopping" in the_error(capsys, main(["finetune", "--early_stopping_patience", "3"]))
