"""Balanced fine-tuning of a pretrained model: native output, the steps of a plain loop, exact resume, two processes."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from helpers.paths import HELPERS, ROOT
from helpers.training import (
    FINETUNE,
    QUIET,
    SIZES,
    finetune_arguments,
    launch_fsdp,
    launch_two,
    log_lines,
    same_weights,
    stop_at,
)
from livt_hf import LivtMAEForPreTraining, ViTForBalancedClassification
from livt_hf.data import (
    FinetuneTransform,
    ImageDataset,
    Mixup,
    TrainingBatches,
    class_counts,
    erase,
    load_long_tailed,
    normalize,
    training_loader,
)
from livt_hf.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from livt_hf.hub.upload import check_model_folder
from livt_hf.models.configuration_livt import LivtMAEConfig
from livt_hf.optimization import Schedule, adamw, learning_rate, parameter_groups
from livt_hf.training.finetuning import finetune, trainer_arguments

pytestmark = pytest.mark.usefixtures("unrendered")


@pytest.fixture(scope="module")
def mae_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mae")
    torch.manual_seed(1)
    config = LivtMAEConfig(
        **SIZES,
        intermediate_size=128,
        image_size=8,
        patch_size=2,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
    )
    LivtMAEForPreTraining(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, mae_dir) -> Path:
    folder = tmp_path_factory.mktemp("finetune") / "whole"
    results = finetune(finetune_arguments(folder, pretrained=str(mae_dir)), QUIET)
    assert json.loads((folder / "results.json").read_text())["accuracy"] == results["accuracy"]
    return folder


def test_the_output_folder_is_a_model_that_plain_transformers_loads(finished, mae_dir):
    model = AutoModelForImageClassification.from_pretrained(finished)
    assert type(model).__name__ == "BeitForImageClassification"
    assert model.config.id2label == {label: str(label) for label in range(10)}
    assert model.config.class_counts == class_counts(load_long_tailed("digits")["train"])
    assert model.config.pretrained == mae_dir.name
    processor = AutoImageProcessor.from_pretrained(finished)
    assert processor.size.shortest_edge == 8
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "results.json"} <= names
    assert not any(path.name == "training_args.bin" for path in finished.rglob("*"))


def test_the_results_have_the_fixed_keys(finished):
    results = json.loads((finished / "results.json").read_text())
    keys = "model parameters dataset loss tau pretrained seed accuracy many medium few ece mce groups per_class command"
    assert set(keys.split()) | {"versions", "hardware"} <= set(results)
    assert (results["loss"], results["tau"], results["seed"], results["dataset"]) == ("bal_bce", 1.0, 0, "digits")
    assert list(results["per_class"]) == [str(label) for label in range(10)]


def test_it_takes_the_steps_of_a_plain_loop(tmp_path, mae_dir):
    """The recipe written out with torch alone: augmentation, mixup, loss, layer decay and schedule agree."""
    args = finetune_arguments(tmp_path, pretrained=str(mae_dir), drop_path=0.0)
    finetune(args, QUIET)
    splits = load_long_tailed("digits")
    counts = class_counts(splits["train"])
    torch.manual_seed(0)
    model = ViTForBalancedClassification.from_mae(mae_dir, counts)
    # The classifier is newly initialized: take that of the run, before its first step.
    from accelerate.utils import set_seed

    from livt_hf.training.classifier import build_classifier

    set_seed(args.seed)
    model = build_classifier(args, counts, args.shot_groups())
    dataset = ImageDataset(splits["train"], FinetuneTransform(8, mean=IMAGENET_MEAN), seed=args.seed)
    batches = TrainingBatches(len(dataset), 32, seed=args.seed, stop_step=24)
    mixup = Mixup(10, seed=args.seed)
    peak, epochs = 4e-3 * 32 / 256, 24 / batches.steps_per_epoch
    optimizer = adamw(parameter_groups(model, 0.05, 0.75), peak, (0.9, 0.99))
    losses, rates = [], []
    for step, batch in enumerate(training_loader(dataset, batches, num_workers=0)):
        rates.append(learning_rate(step / batches.steps_per_epoch, peak, 1e-6, epochs / 10, epochs))
        for group in optimizer.param_groups:
            group["lr"] = group["lr_scale"] * rates[-1]
        pixels = erase(
            normalize(batch["pixel_values"], IMAGENET_MEAN, IMAGENET_STD), batch["erase_box"], batch["erase_seed"]
        )
        pixels, targets = mixup(pixels, batch["labels"], step)
        bias = torch.from_numpy(model.config.prior().log_odds).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            model(pixels).logits + bias, targets, reduction="none"
        )
        loss = loss.sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    logged = [line for line in log_lines(tmp_path) if "loss" in line]
    assert [line["step"] for line in logged] == [5, 10, 15, 20]
    expected = [sum(losses[start : start + 5]) / 5 for start in (0, 5, 10, 15)]
    assert [line["loss"] for line in logged] == pytest.approx(expected, rel=1e-5)
    assert [line["lr"] for line in logged] == pytest.approx([rates[step - 1] for step in (5, 10, 15, 20)])  # the head's
    trained = ViTForBalancedClassification.from_pretrained(tmp_path)
    for (name, one), two in zip(trained.state_dict().items(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("stop_after", [7, 17])
def test_a_run_stopped_and_continued_is_bit_identical(finished, mae_dir, tmp_path, stop_after, monkeypatch, capsys):
    """With drop path, stopped by a real signal in the middle of an epoch and of a logging window."""
    optimizer_step = torch.optim.AdamW.step
    steps = []

    def step_and_signal(self, *args, **kwargs):
        steps.append(None)
        if len(steps) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return optimizer_step(self, *args, **kwargs)

    args = finetune_arguments(tmp_path, pretrained=str(mae_dir))
    monkeypatch.setattr(torch.optim.AdamW, "step", step_and_signal)
    assert finetune(args, QUIET) is None
    assert f"stopped by SIGTERM after step {stop_after} of 24" in capsys.readouterr().out
    monkeypatch.setattr(torch.optim.AdamW, "step", optimizer_step)
    finetune(args, QUIET)
    assert same_weights(finished, tmp_path)
    assert log_lines(tmp_path) == log_lines(finished)


def test_a_torn_checkpoint_is_skipped_and_the_result_is_the_same(finished, mae_dir, tmp_path, capsys):
    args = finetune_arguments(tmp_path, pretrained=str(mae_dir))
    finetune(args, QUIET)
    (tmp_path / "run.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "checkpoint-24" / "complete.json").unlink()
    capsys.readouterr()
    finetune(args, QUIET)
    output = capsys.readouterr().out
    assert "checkpoint-24: it has no complete.json" in output
    assert f"resumed from {tmp_path / 'checkpoint-16'}" in output
    assert same_weights(finished, tmp_path)
    assert log_lines(tmp_path) == log_lines(finished)


def test_two_processes_train_as_one_at_the_same_global_batch(finished, mae_dir, tmp_path):
    one_dir, two_dir = tmp_path / "one", tmp_path / "two"
    options = {"pretrained": str(mae_dir), "drop_path": 0.0, "max_steps": 12}
    finetune(finetune_arguments(one_dir, **options), QUIET)
    flat = {**FINETUNE, **options, "batch_size": 16, "output_dir": two_dir}
    script = ROOT / "scripts" / "run_finetune.py"
    output = launch_two(script, *(part for name, value in flat.items() for part in (f"--{name}", str(value))))
    assert "world size 2 on cpu" in output
    one, two = log_lines(one_dir), log_lines(two_dir)
    assert [line["step"] for line in two] == [line["step"] for line in one]
    for first, second in zip(one, two, strict=True):
        for name in {"loss", "eval_accuracy"} & set(first):
            assert second[name] == pytest.approx(first[name], rel=1e-4)


def test_without_a_validation_or_test_split_it_trains_and_skips_evaluation(tmp_path, capsys, mae_dir):
    from PIL import Image

    for name, level in (("dark", 30), ("light", 220)):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for index in range(6):
            Image.new("RGB", (12, 10), (level + index,) * 3).save(folder / f"{index}.png")
    args = finetune_arguments(
        tmp_path / "out", dataset=str(tmp_path / "images"), pretrained=str(mae_dir), batch_size=4, max_steps=2
    )
    assert finetune(args, QUIET) is None
    said = "neither a test nor a validation split: nothing is evaluated; --val_fraction 0.1 holds out"
    assert said in capsys.readouterr().out
    model = ViTForBalancedClassification.from_pretrained(tmp_path / "out")
    assert model.config.ordered_class_counts() == {"dark": 6, "light": 6}
    card, page = (tmp_path / "out" / "README.md").read_text(), (tmp_path / "out" / "report.html").read_text()
    assert "This model has not been evaluated" in card
    assert "| dark | 6 |\n| light | 6 |" in card
    assert "This model has not been evaluated" in page
    assert not (tmp_path / "out" / "results.json").exists()
    assert check_model_folder(tmp_path / "out")


def test_the_average_of_the_weights_survives_a_resume_and_is_what_is_saved(tmp_path, mae_dir, monkeypatch):
    options = {"pretrained": str(mae_dir), "max_steps": 12, "save_every": 4, "ema": 0.5}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finetune(finetune_arguments(whole, **options), QUIET)
    with monkeypatch.context() as patch:
        stop_at(6, patch)
        assert finetune(finetune_arguments(stopped, **options), QUIET) is None
    finetune(finetune_arguments(stopped, **options), QUIET)
    assert same_weights(whole, stopped)
    assert log_lines(whole) == log_lines(stopped)
    checkpoint = whole / "checkpoint-12"
    model = ViTForBalancedClassification.from_pretrained(whole).state_dict()
    average, trained = (
        load_file(checkpoint / "ema.safetensors"),
        ViTForBalancedClassification.from_pretrained(checkpoint),
    )
    assert all(torch.equal(model[name], average[name]) for name in average)
    assert any(not torch.equal(model[name], tensor) for name, tensor in trained.state_dict().items())


def test_fsdp2_is_the_same_run_and_resumes_with_any_engine(finished, mae_dir, tmp_path):
    """The whole run sharded over two processes; resumed at step 16, sharded again, or in one process."""
    one_dir, run_dir = tmp_path / "one", tmp_path / "run"
    options = {"pretrained": str(mae_dir), "drop_path": 0.0, "max_steps": 20, "epochs": 4, "warmup_epochs": 0.4}
    finetune(finetune_arguments(one_dir, **options), QUIET)
    expected = log_lines(one_dir)

    def check():
        found = log_lines(run_dir)
        assert [line["step"] for line in found] == [line["step"] for line in expected]
        for first, second in zip(expected, found, strict=True):
            for name in {"loss", "lr", "eval_accuracy"} & set(first):
                assert second[name] == pytest.approx(first[name], rel=1e-4)
        model, info = AutoModelForImageClassification.from_pretrained(run_dir, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        whole = load_file(one_dir / "model.safetensors")
        for name, tensor in load_file(run_dir / "model.safetensors").items():
            torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=1e-4, msg=name)
        assert torch.isfinite(model(torch.rand(2, 3, 8, 8)).logits).all()

    def cut_off_after(step: int):
        for name in ("run.json", "model.safetensors"):
            (run_dir / name).unlink()
        for folder in run_dir.glob("checkpoint-*"):
            if int(folder.name.split("-")[1]) > step:
                shutil.rmtree(folder)

    flat = {**FINETUNE, **options, "batch_size": 16, "output_dir": run_dir}
    words = [part for name, value in flat.items() for part in (f"--{name}", str(value))]
    for start in ("", "resumed from"):
        output = launch_fsdp(HELPERS / "fsdp_finetune.py", *words)
        assert "world size 2 on cpu, FSDP" in output
        assert start in output
        check()
        cut_off_after(16)
    finetune(finetune_arguments(run_dir, **options), QUIET)
    check()


def test_sizes_set_by_the_pretrained_model_are_reported(mae_dir, tmp_path, capsys):
    finetune(finetune_arguments(tmp_path, pretrained=str(mae_dir), num_hidden_layers=5, max_steps=1), QUIET)
    assert f"num_hidden_layers 5: not used, the sizes are those of {mae_dir}" in capsys.readouterr().out


def test_another_image_size_than_in_pretraining_is_reported(mae_dir, tmp_path, capsys):
    for size, times in ((8, 0), (12, 1)):
        finetune(finetune_arguments(tmp_path / str(size), pretrained=str(mae_dir), image_size=size, max_steps=1), QUIET)
        said = f"image_size {size}: {mae_dir} was trained at 8 px\n"
        assert capsys.readouterr().out.count(said) == times


def test_a_finished_model_is_not_replaced_by_another_run(finished, mae_dir, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    same = {"pretrained": str(mae_dir)}
    with pytest.raises(ValueError, match=r"contains the finished model of a run with different options: seed: 0 -> 5"):
        finetune(finetune_arguments(tmp_path / "run", seed=5, **same), QUIET)
    assert same_weights(finished, tmp_path / "run")
    replaced = finetune(finetune_arguments(tmp_path / "run", seed=5, resume="never", max_steps=2, **same), QUIET)
    assert replaced["seed"] == 5


@pytest.mark.parametrize(
    ("options", "more", "precision"),
    [({"compile": True}, {}, "highest"), ({}, {"torch_compile": True}, "highest"), ({"tf32": True}, {}, "high")],
)
def test_compilation_does_not_change_the_precision(tmp_path, options, more, precision, monkeypatch):
    """On a GPU with TF32, TrainingArguments turn it on for compiled models."""
    before = torch.get_float32_matmul_precision(), torch.backends.fp32_precision
    monkeypatch.setattr(transformers.training_args, "is_torch_tf32_available", lambda: True)
    schedule = Schedule.plan(10, 32, epochs=1, warmup_epochs=0, max_steps=None, base_lr=1e-3, min_lr=0.0)
    try:
        arguments = trainer_arguments(finetune_arguments(tmp_path, **options), schedule, "no", more)
        assert torch.get_float32_matmul_precision() == precision
        assert arguments.torch_compile == bool(options.get("compile") or more)
    finally:
        torch.backends.fp32_precision = before[1]
        torch.set_float32_matmul_precision(before[0])
