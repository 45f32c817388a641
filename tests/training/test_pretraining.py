"""The pretraining loop: what it computes, and that it resumes exactly, in one process and in two."""

import dataclasses
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import ViTMAEModel

from helpers.training import log_lines, pretrain_arguments, same_weights
from livt_hf import LivtMAEForPreTraining
from livt_hf.config.arguments import FinetuneArguments
from livt_hf.data import (
    ImageDataset,
    PretrainTransform,
    TrainingBatches,
    class_counts,
    load_long_tailed,
    normalize,
    training_loader,
)
from livt_hf.files import MARKER, incompleteness
from livt_hf.models.modeling_livt import interpolate_position_embeddings
from livt_hf.optimization import learning_rate
from livt_hf.training.finetuning import finetune
from livt_hf.training.pretraining import build_autoencoder, pretrain
from livt_hf.training.stopping import StopSignal

pytestmark = pytest.mark.usefixtures("unrendered")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain") / "whole"
    assert pretrain(pretrain_arguments(folder)) == folder
    return folder


def test_it_takes_the_steps_of_a_plain_adamw_loop(finished):
    """The same run written out with torch alone: order, masks, schedule, weight decay and update agree."""
    from accelerate.utils import set_seed

    from livt_hf.training.pretraining import mae_config

    args = pretrain_arguments(finished)
    set_seed(args.seed)
    model = LivtMAEForPreTraining(mae_config(args))
    dataset = ImageDataset(load_long_tailed("digits")["train"], PretrainTransform(8, 16), seed=args.seed)
    batches = TrainingBatches(len(dataset), 32, seed=args.seed, stop_step=24)
    decay = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    rest = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=False)
    losses = []
    for step, batch in enumerate(training_loader(dataset, batches, num_workers=0)):
        epochs = 24 / batches.steps_per_epoch
        lr = learning_rate(step / batches.steps_per_epoch, 4e-3 * 32 / 256, 0.0, epochs / 10, epochs)
        for group in optimizer.param_groups:
            group["lr"] = lr
        pixels = normalize(batch["pixel_values"], args.mean, args.std)
        loss = model(pixels, noise=batch["noise"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    logged = log_lines(finished)
    assert [line["step"] for line in logged] == [5, 10, 15, 20, 24]
    expected = [
        sum(losses[start:stop]) / (stop - start) for start, stop in ((0, 5), (5, 10), (10, 15), (15, 20), (20, 24))
    ]
    assert [line["loss"] for line in logged] == pytest.approx(expected, rel=1e-5)
    trained = LivtMAEForPreTraining.from_pretrained(finished)
    for (name, one), two in zip(trained.state_dict().items(), model.state_dict().values(), strict=True):
        if not name.endswith("k_proj.bias"):  # its gradient is zero but for rounding, which Adam blows up
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5, msg=name)


def test_the_output_folder_contains_a_native_model_and_its_processor(finished):
    names = {path.name for path in finished.iterdir()}
    expected = {"config.json", "model.safetensors", "preprocessor_config.json", "metrics.jsonl", "run.json"}
    expected |= {"loss_curve.png", "reconstructions.png", "README.md", "report.md", "report.html"}
    assert expected | {"checkpoint-8", "checkpoint-16"} == names
    assert json.loads((finished / "run.json").read_text())["steps"] == 24


def test_the_position_embeddings_were_not_trained(finished):
    fresh = LivtMAEForPreTraining.from_pretrained(finished)
    again = LivtMAEForPreTraining(fresh.config)
    assert torch.equal(fresh.vit.embeddings.position_embeddings.data, again.vit.embeddings.position_embeddings.data)


@pytest.mark.parametrize("stop_after", [8, 16])
def test_a_run_stopped_and_continued_is_bit_identical(finished, tmp_path, stop_after, monkeypatch, capsys):
    """Stopped by a real signal in the middle of a logging window, saved, continued by the same command."""
    optimizer_step = torch.optim.AdamW.step
    steps = []

    def step_and_signal(self, *args, **kwargs):
        steps.append(None)
        if len(steps) == stop_after - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return optimizer_step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step_and_signal)
    assert pretrain(pretrain_arguments(tmp_path)) is None
    assert f"stopped by SIGTERM after step {stop_after - 1} of 24" in capsys.readouterr().out
    assert (tmp_path / f"checkpoint-{stop_after - 1}" / "complete.json").exists()
    monkeypatch.setattr(torch.optim.AdamW, "step", optimizer_step)
    assert pretrain(pretrain_arguments(tmp_path)) == tmp_path
    assert same_weights(finished, tmp_path)
    assert log_lines(tmp_path) == log_lines(finished)


def test_a_torn_checkpoint_is_skipped_and_the_result_is_the_same(finished, tmp_path, capsys, monkeypatch):
    pretrain(pretrain_arguments(tmp_path))
    for name in ("model.safetensors", "run.json"):
        (tmp_path / name).unlink()
    torn = tmp_path / "checkpoint-16" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    capsys.readouterr()
    pretrain(pretrain_arguments(tmp_path))
    output = capsys.readouterr().out
    assert "checkpoint-16: its file model.safetensors has" in output
    assert "resumed from" in output
    assert "checkpoint-8" in output
    assert same_weights(finished, tmp_path)
    assert log_lines(tmp_path) == log_lines(finished)


def test_the_precision_is_not_that_of_an_earlier_run_in_the_process(tmp_path, capsys):
    for number, precision in enumerate(("bf16", None, "bf16", "no")):
        pretrain(pretrain_arguments(tmp_path / str(number), max_steps=1, mixed_precision=precision))
        assert f"mixed precision {precision or 'no'}\n" in capsys.readouterr().out


def test_gradient_accumulation_gives_the_same_run(finished, tmp_path):
    pretrain(pretrain_arguments(tmp_path, batch_size=8, gradient_accumulation_steps=4))
    one, four = log_lines(finished), log_lines(tmp_path)
    assert [line["loss"] for line in four] == pytest.approx([line["loss"] for line in one], rel=1e-4)
    assert [line["lr"] for line in four] == [line["lr"] for line in one]


def test_a_finished_run_is_left_alone_and_a_changed_option_is_named(finished, tmp_path, capsys):
    before = (finished / "model.safetensors").stat().st_mtime_ns
    assert pretrain(pretrain_arguments(finished)) == finished
    assert "nothing to do" in capsys.readouterr().out
    assert (finished / "model.safetensors").stat().st_mtime_ns == before
    pretrain(pretrain_arguments(tmp_path, max_steps=9))
    (tmp_path / "run.json").unlink()
    pretrain(pretrain_arguments(tmp_path, max_steps=9, weight_decay=0.1))
    assert "resuming with changed weight_decay: 0.05 -> 0.1" in capsys.readouterr().out


def test_a_resume_takes_the_changed_options_from_its_first_step(finished, tmp_path, monkeypatch):
    shutil.copytree(finished / "checkpoint-8", tmp_path / "checkpoint-8")
    optimizer_step, steps = torch.optim.AdamW.step, []

    def read(self, *args, **kwargs):
        steps.append([{**group} for group in self.param_groups])
        return optimizer_step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", read)
    pretrain(pretrain_arguments(tmp_path, base_lr=1e-3, weight_decay=0.3, betas=[0.8, 0.9]))
    first = steps[8 - 24]
    assert sorted(group["weight_decay"] for group in first) == [0.0, 0.3]
    for group in first:
        assert tuple(group["betas"]) == (0.8, 0.9)
        assert group["initial_lr"] == 1e-3 * 32 / 256
        assert group["lr"] == learning_rate(8, 1e-3 * 32 / 256, 0.0, 2.4, 24)
    state = torch.load(tmp_path / "checkpoint-16" / "optimizer.pt", weights_only=True)["state"]
    assert {int(entry["step"]) for entry in state.values()} == {16}


def test_later_checkpoints_of_an_abandoned_branch_are_archived(finished, tmp_path):
    for name in ("checkpoint-8", "checkpoint-16"):
        shutil.copytree(finished / name, tmp_path / name)
    pretrain(pretrain_arguments(tmp_path, resume=str(tmp_path / "checkpoint-8"), max_steps=12, save_every=50))
    assert (tmp_path / "abandoned-1" / "checkpoint-16").is_dir()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-8"]


def test_a_non_finite_loss_stops_the_run_with_the_weights_from_before(tmp_path):
    with pytest.raises(ValueError, match="the loss was not finite at step 2;") as error:
        pretrain(pretrain_arguments(tmp_path, base_lr=1e38, warmup_epochs=0, epochs=2.4, save_every=1, logging_steps=1))
    assert "--base_lr" in str(error.value)
    state = torch.load(tmp_path / "checkpoint-1" / "optimizer.pt", weights_only=True)
    assert all(torch.isfinite(entry["exp_avg"]).all() for entry in state["state"].values())


def test_a_bad_step_is_found_at_the_next_logged_step_and_changes_nothing(tmp_path, monkeypatch):
    """No step waits for the device: the update is skipped there, and reported at the next log line."""
    forward = LivtMAEForPreTraining.forward
    calls = []

    def poisoned(self, pixel_values, **kwargs):
        calls.append({name: tensor.clone() for name, tensor in self.state_dict().items()})
        output = forward(self, pixel_values, **kwargs)
        if len(calls) == 3:
            output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(LivtMAEForPreTraining, "forward", poisoned)
    with pytest.raises(ValueError, match="not finite at step 3;"):
        pretrain(pretrain_arguments(tmp_path))
    assert len(calls) == 5  # the logged step
    assert all(torch.equal(calls[2][name], calls[3][name]) for name in calls[2])
    assert not all(torch.equal(calls[3][name], calls[4][name]) for name in calls[3])


def test_a_full_disk_is_reported_in_one_line_and_loses_nothing(finished, tmp_path, monkeypatch):
    """The second checkpoint hits a system limit on file size, so that every way of writing really fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    monkeypatch.setattr("livt_hf.training.run.remove_old_checkpoints", fill_the_disk)
    try:
        with pytest.raises(ValueError, match="checkpoint-16' cannot be written .*GB are free.*make room") as error:
            pretrain(pretrain_arguments(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-8"]
    assert incompleteness(tmp_path / "checkpoint-8") is None
    pretrain(pretrain_arguments(tmp_path))
    assert same_weights(finished, tmp_path)


def test_it_continues_from_a_published_autoencoder_at_another_image_size(finished, tmp_path, capsys):
    """Sizes and weights come from a file as transformers writes it, such as facebook/vit-mae-*."""
    given = LivtMAEForPreTraining.from_pretrained(finished)
    args = pretrain_arguments(tmp_path, pretrained=str(finished), image_size=12, hidden_size=64, num_hidden_layers=None)
    model = build_autoencoder(args)
    said = f"image_size 12: {finished} was trained at 8 px\n"
    assert said in capsys.readouterr().out
    assert (model.config.image_size, model.config.hidden_size) == (12, 32)
    assert model.training
    for name, weight in model.state_dict().items():
        if "pos" not in name:
            assert torch.equal(weight, given.state_dict()[name]), name
    positions = model.vit.embeddings.position_embeddings
    assert positions.shape == (1, 1 + 36, 32)
    assert not positions.requires_grad
    before = given.vit.embeddings.position_embeddings
    assert torch.equal(positions, interpolate_position_embeddings(before, 36))
    pretrain(dataclasses.replace(args, max_steps=2, num_workers=0))
    again = LivtMAEForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(again.vit.embeddings.position_embeddings, positions)


def test_a_file_without_a_decoder_gets_a_new_one(finished, tmp_path, capsys):
    ViTMAEModel.from_pretrained(finished).save_pretrained(tmp_path / "encoder")
    model = build_autoencoder(pretrain_arguments(tmp_path / "out", pretrained=str(tmp_path / "encoder")))
    assert "weights of the decoder, which are newly initialized" in capsys.readouterr().out
    assert model.decoder.decoder_pos_embed.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 400}, "400 images .* larger than the 331 training images; lower it"),
        ({"mask_ratio": 0.0}, "mask_ratio: 0.0 leaves"),
        ({"mask_ratio": 1.5}, "mask_ratio: 1.5 leaves"),
        ({"mask_ratio": 0.95}, "mask_ratio: 0.95 leaves 0 of 16 patches visible"),
        ({"partial_reconstruction": 0.0}, "partial_reconstruction"),
        (
            {"pretrained": "no/such folder"},
            "pretrained: 'no/such folder' cannot be loaded as a masked autoencoder: there is no such folder; give",
        ),
        ({"log_with": ["wandbb"]}, "log_with: 'wandbb' is not installed"),
        ({"mixed_precision": "fp16"}, "mixed_precision: fp16 needs a GPU"),
        ({"resume": "/nowhere/checkpoint-5"}, "resume: .* there is no such folder"),
    ],
)
def test_invalid_options_are_reported_in_one_line(tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as error:
        pretrain(pretrain_arguments(tmp_path, **options))
    assert "\n" not in str(error.value)


def test_a_finished_autoencoder_is_not_replaced(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(ValueError, match="contains the finished model of a run with different options: seed: 0 -> 5"):
        pretrain(pretrain_arguments(tmp_path / "run", seed=5))
    classifier = FinetuneArguments(dataset="digits", pretrained=str(finished), output_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="contains the finished model of the other stage; name another folder"):
        finetune(classifier)
    assert same_weights(finished, tmp_path / "run")


def test_a_readme_of_somebody_is_not_replaced(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"contains a README\.md, and no record of a run \(run\.json\); name another"):
        pretrain(pretrain_arguments(tmp_path))
    with pytest.raises(ValueError, match=r"contains a README\.md, and no record of a run"):
        finetune(FinetuneArguments(dataset="digits", pretrained="none", output_dir=str(tmp_path)))
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not (tmp_path / "model.safetensors").exists()


def test_a_checkpoint_of_another_patch_size_image_size_or_stage_is_refused(finished, tmp_path):
    with pytest.raises(ValueError, match="patch_size: 4 differs from 2 of"):
        pretrain(pretrain_arguments(tmp_path / "a", pretrained=str(finished), patch_size=4))
    shutil.copytree(finished / "checkpoint-8", tmp_path / "b" / "checkpoint-8")
    with pytest.raises(ValueError, match="contains a run with different options: image_size: 8 -> 16"):
        pretrain(pretrain_arguments(tmp_path / "b", image_size=16))
    foreign = tmp_path / "c" / "checkpoint-8"
    shutil.copytree(finished / "checkpoint-8", foreign)
    sizes = {file.name: file.stat().st_size for file in foreign.iterdir() if file.name not in ("state.json", MARKER)}
    (foreign / "state.json").unlink()
    (foreign / MARKER).write_text(json.dumps({"files": sizes}))
    with pytest.raises(ValueError, match="is a checkpoint of another stage"):
        pretrain(pretrain_arguments(tmp_path / "c"))


def test_pixels_that_are_no_numbers_are_bad_images(tmp_path):
    """A float TIFF with NaN and infinity."""
    pixels = np.full((8, 8), 100.0, dtype=np.float32)
    for label in "ab":
        folder = tmp_path / "set" / "train" / label
        folder.mkdir(parents=True)
        for index in range(20):
            PIL.Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    pixels[0, 0], pixels[1, 1] = np.nan, np.inf
    PIL.Image.fromarray(pixels).save(tmp_path / "set" / "train" / "a" / "nan.tiff")
    pretrain(pretrain_arguments(tmp_path / "out", dataset=str(tmp_path / "set"), batch_size=41, max_steps=1))
    log = (tmp_path / "out" / "bad_images.log").read_text()
    assert "nan.tiff" in log


def test_it_trains_on_a_stream_of_parquet_files_and_resumes(tmp_path, capsys):
    digits = load_long_tailed("digits")["train"]
    for shard in range(3):
        digits.shard(3, shard).to_parquet(tmp_path / "set" / f"train-{shard:05}-of-00003.parquet")
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps(class_counts(digits)))
    options = {"dataset": str(tmp_path / "set"), "streaming": True, "class_counts": str(counts)}
    pretrain(pretrain_arguments(tmp_path / "out", **options))
    assert "on 331 images" in capsys.readouterr().out
    losses = [line["loss"] for line in log_lines(tmp_path / "out")]
    assert losses[-1] < 0.9 * losses[0]
    for name in ("model.safetensors", "run.json"):
        (tmp_path / "out" / name).unlink()
    pretrain(pretrain_arguments(tmp_path / "out", **options))
    assert "resumed from" in capsys.readouterr().out
    assert [line["step"] for line in log_lines(tmp_path / "out")] == [5, 10, 15, 20, 24]


def test_the_signal_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_trackers_get_the_figures_of_the_log(finished, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pretrain(pretrain_arguments(tmp_path, log_with=["tensorboard"]))
    events = accumulator.EventAccumulator(str(tmp_path / "livt_hf")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in log_lines(finished)]
