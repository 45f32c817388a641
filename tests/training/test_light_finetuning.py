"""`livt finetune --adapter`: runs that train a part of the model, their checkpoints, and the native model they save."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, TrainerCallback

from helpers.paths import HELPERS, ROOT
from helpers.training import (
    FINETUNE,
    QUIET,
    finetune_arguments,
    launch_fsdp,
    launch_two,
    log_lines,
    pretrain_arguments,
    same_weights,
    stop_at,
)
from livt_hf import BalancedTrainer
from livt_hf.cli import main
from livt_hf.data import load_long_tailed
from livt_hf.evaluation.predict import predict_images
from livt_hf.optimization import parameter_groups, sgd
from livt_hf.training.finetuning import finetune
from livt_hf.training.pretraining import pretrain

pytestmark = pytest.mark.usefixtures("unrendered")

LORA = {"adapter": "lora", "adapter_rank": 4, "layer_decay": 1.0}


@pytest.fixture(scope="module")
def mae_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mae")
    pretrain(pretrain_arguments(folder, max_steps=8))
    return folder


def options_with(mae_dir, **changed):
    return {**LORA, "pretrained": str(mae_dir), "max_steps": 12, "save_every": 4, **changed}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, mae_dir) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    finetune(finetune_arguments(folder, **options_with(mae_dir)), QUIET)
    return folder


def test_checkpoints_and_optimizer_hold_what_is_trained(finished):
    trained = load_file(finished / "checkpoint-12" / "trained.safetensors")
    parts = {name.rpartition(".")[0].rpartition(".lora_")[2] for name in trained if "lora" in name}
    assert parts == {"A.default", "B.default"}
    assert {name for name in trained if "lora" not in name} == {"classifier.weight", "classifier.bias"}
    state = torch.load(finished / "checkpoint-12" / "optimizer.pt", weights_only=True)["state"]
    assert state.keys() == trained.keys()
    assert not (finished / "checkpoint-12" / "model.safetensors").exists()


def test_trained_and_total_parameters_are_told(finished, capsys, mae_dir, tmp_path):
    trained = load_file(finished / "checkpoint-12" / "trained.safetensors")
    number = sum(tensor.numel() for tensor in trained.values())
    total = sum(tensor.numel() for tensor in load_file(finished / "model.safetensors").values())
    results = json.loads((finished / "results.json").read_text())
    assert (results["trained_parameters"], results["parameters"]) == (number, total)
    card = (finished / "README.md").read_text(encoding="utf-8")
    told = f"{total:,} parameters, fine-tuned through {number:,} (LoRA, merged, and the classifier),"
    assert told in " ".join(card.split())
    assert "| `adapter` | lora |" in card
    capsys.readouterr()
    finetune(finetune_arguments(tmp_path, **options_with(mae_dir, adapter="bias", max_steps=4)), QUIET)
    output = capsys.readouterr().out
    size = sum(file.stat().st_size for file in (tmp_path / "checkpoint-4").iterdir() if file.name != "complete.json")
    assert f"a checkpoint holds the trained parameters and the optimizer's: {size / 1e6:.1f} MB" in output
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "(biases, and the classifier)," in " ".join(card.split())
    assert "| `adapter_rank` |" not in card


def test_the_frozen_weights_are_those_of_the_start(mae_dir, tmp_path):
    finetune(finetune_arguments(tmp_path, **options_with(mae_dir, adapter="layernorm")), QUIET)
    start, end = load_file(mae_dir / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    name = "encoder.layer.0.attention.attention.query.weight"
    assert torch.equal(start[f"vit.{name}"], end[f"beit.{name}"])
    name = "encoder.layer.0.layernorm_before.weight"
    assert not torch.equal(start[f"vit.{name}"], end[f"beit.{name}"])


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"adapter": "bias", "ema": 0.5},
        {"keep_best": "accuracy", "adapter_dropout": 0.2, "eval_every": 1, "optimizer": "sgd"},
    ],
)
def test_a_run_stopped_and_continued_is_bit_identical(mae_dir, tmp_path, changed, monkeypatch):
    options = options_with(mae_dir, **changed)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finetune(finetune_arguments(whole, **options), QUIET)
    with monkeypatch.context() as patch:
        stop_at(6, patch, torch.optim.SGD if changed.get("optimizer") == "sgd" else torch.optim.AdamW)
        assert finetune(finetune_arguments(stopped, **options), QUIET) is None
    finetune(finetune_arguments(stopped, **options), QUIET)
    assert same_weights(whole, stopped)
    assert log_lines(whole) == log_lines(stopped)


class SameRun:
    """A run in one process, and others in two, whose log and weights are compared with it."""

    def __init__(self, mae_dir, tmp_path):
        self.options, self.folder = options_with(mae_dir, drop_path=0.0, classifier_init="class_mean"), tmp_path
        finetune(finetune_arguments(tmp_path / "one", **self.options), QUIET)
        flat = {**FINETUNE, **self.options, "batch_size": 16, "output_dir": tmp_path / "two"}
        self.words = [part for name, value in flat.items() for part in (f"--{name}", str(value))]

    def check(self):
        expected, found = log_lines(self.folder / "one"), log_lines(self.folder / "two")
        assert [line["step"] for line in found] == [line["step"] for line in expected]
        for first, second in zip(expected, found, strict=True):
            for name in {"loss", "eval_accuracy"} & set(first):
                assert second[name] == pytest.approx(first[name], rel=1e-4)
        one = load_file(self.folder / "one" / "model.safetensors")
        for name, tensor in load_file(self.folder / "two" / "model.safetensors").items():
            torch.testing.assert_close(tensor, one[name], rtol=1e-3, atol=1e-4, msg=name)


def test_two_processes_train_as_one(mae_dir, tmp_path):
    run = SameRun(mae_dir, tmp_path)
    launch_two(ROOT / "scripts" / "run_finetune.py", *run.words)
    run.check()


@pytest.mark.slow
def test_fsdp2_is_the_same_run_and_resumes(mae_dir, tmp_path):
    run = SameRun(mae_dir, tmp_path)
    for start in ("", "resumed from"):
        output = launch_fsdp(HELPERS / "fsdp_finetune.py", *run.words)
        assert "world size 2 on cpu, FSDP" in output
        assert start in output
        run.check()
        for name in ("run.json", "model.safetensors", "checkpoint-12/complete.json"):
            (tmp_path / "two" / name).unlink()


NATIVE = """
import sys
sys.modules["livt_hf"] = sys.modules["peft"] = None
import json, torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline
folder, *images = sys.argv[1:]
model, info = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
answers = pipeline("image-classification", folder, top_k=3)([Image.open(image) for image in images])
print("answers:" + json.dumps(answers))
"""


def test_the_result_is_native_without_this_package_and_without_peft(finished, tmp_path):
    images = []
    for number, image in enumerate(load_long_tailed("digits")["test"].select(range(4))["image"]):
        images.append(str(tmp_path / f"{number}.png"))
        Path(images[-1]).write_bytes(image["bytes"])
    command = [sys.executable, "-c", NATIVE, str(finished), *images]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    answers = json.loads(run.stdout.rpartition("answers:")[2])
    for answer, ours in zip(answers, predict_images(finished, images, top_k=3), strict=True):
        for first, second in zip(answer, ours["predictions"], strict=True):
            assert first["label"] == second["label"]
            assert first["score"] == pytest.approx(second["score"], abs=1e-5)


def test_the_merged_model_in_onnx_predicts_the_same(finished, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert main(["export", "--format", "onnx", "--model", str(finished), "--output_dir", str(tmp_path)]) == 0
    pixels = torch.rand(3, 3, 8, 8)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixel_values": pixels.numpy()})
    model = AutoModelForImageClassification.from_pretrained(finished).eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(pixels).logits, rtol=1e-4, atol=1e-4)


def test_sgd_is_torchs_with_momentum_and_scaled_rates():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    groups = parameter_groups(ours, 0.1)
    for group in groups:
        group["lr_scale"] = 0.5
    matrices, vectors = ([p for p in theirs.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    one = sgd(groups, 0.2, 0.9)
    two = torch.optim.SGD([{"params": matrices, "weight_decay": 0.1}, {"params": vectors}], lr=0.1, momentum=0.9)
    for step in range(4):
        pixels = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        for model, optimizer in ((ours, one), (theirs, two)):
            model(pixels).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for first, second in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(first, second)


def test_options_without_effect_are_told(mae_dir, tmp_path, caplog):
    given = {"adapter": "bias", "momentum": 0.5, "loss": "ce", "tau": 2.0, "max_steps": 1}
    finetune(finetune_arguments(tmp_path, **options_with(mae_dir, **given)), QUIET)
    assert [line for line in caplog.messages if "no effect" in line] == [
        "momentum: no effect with --optimizer adamw",
        "adapter_rank: no effect with --adapter bias",
        "tau: no effect with --loss ce",
    ]
    assert " parameters with ce on " in caplog.text
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| `loss` | ce |" in card
    assert "| `tau` |" not in card


def test_options_that_contradict_an_adapter_are_refused(tmp_path):
    for changed, message in (
        ({"pretrained": "none"}, "^adapter: lora adapts a pretrained model; name it with --pretrained$"),
        ({"stage": "classifier", "loss": "ce"}, "^adapter: --stage classifier trains the classifier alone"),
        ({"adapter": "bias", "adapter_targets": ["fc1"]}, "^adapter_targets: they belong to --adapter lora, not bias"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune_arguments(tmp_path, **{**LORA, "pretrained": "mae", **changed})


def test_a_checkpoint_of_other_parameters_is_refused(finished, mae_dir, tmp_path):
    options = options_with(mae_dir, adapter="bias", resume=str(finished / "checkpoint-8"))
    with pytest.raises(
        ValueError, match="^output_dir: .* contains a run with different options: adapter: lora -> bias"
    ):
        finetune(finetune_arguments(tmp_path, **options), QUIET)


def test_balanced_trainer_takes_a_peft_model(tmp_path):
    """Trained, resumed, and merged to a native model; the loss is that of its class counts."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from training.test_trainer import arguments, named_model, with_pixels

    data = with_pixels(load_long_tailed("digits").cast_column("image", Image()))

    def trainer(folder, **options):
        torch.manual_seed(1)
        config = LoraConfig(r=2, target_modules=r".*\.(query|value|q_proj|v_proj)", modules_to_save=["classifier"])
        model = get_peft_model(named_model(names=[str(digit) for digit in range(10)]), config)
        args = arguments(tmp_path / folder, save_strategy="steps", save_steps=3, max_steps=6, **options)
        return BalancedTrainer(model, args, train_dataset=data["train"], eval_dataset=data["test"], loss="bal_ce")

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            control.should_training_stop = True

    whole, first, second = trainer("whole"), trainer("parts"), trainer("parts")
    whole.train()
    first.add_callback(Stop())
    first.train()
    second.train(resume_from_checkpoint=True)
    assert isinstance(second.model, PeftModel)
    for (name, one), two in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert second.evaluate()["eval_accuracy"] == whole.evaluate()["eval_accuracy"]
    merged = whole.model.merge_and_unload()
    assert merged.config.class_counts == whole.class_counts
    merged.save_pretrained(tmp_path / "merged")
    native = AutoModelForImageClassification.from_pretrained(tmp_path / "merged").eval()
    pixels = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(native(pixels).logits, merged.eval()(pixels).logits)
