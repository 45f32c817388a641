"""Train, push, and load from the Hub: plain transformers, in a process that cannot import this package, and ours."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Image
from transformers import TrainingArguments, ViTImageProcessor

from helpers.hub_server import Failure, Hub, is_whole, redirect_client, serve
from helpers.tiny_models import tiny
from livt_hf import BalancedTrainer, LivtMAEForPreTraining, ViTForBalancedClassification
from livt_hf.cli import main
from livt_hf.config.arguments import FinetuneArguments, PretrainArguments
from livt_hf.config.parsing import parse_arguments
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.training.finetuning import finetune
from livt_hf.training.pretraining import pretrain

pytestmark = pytest.mark.usefixtures("unrendered")

TOKEN = "hf_secret"
SIZES = ["--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2"]
LOADING = ["--batch_size", "64", "--num_workers", "0"]
SMALL = [*SIZES, *LOADING]
PUSH = ["--push_to_hub", "--hub_model_id"]
SHORT = ["--recipe", "digits", "--max_steps", "4", "--warmup_epochs", "0", "--save_every", "2", *PUSH]
PLAIN = """
import sys; sys.modules["livt_hf"] = None
import json, torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining
from transformers import ViTMAEModel, pipeline
from PIL import Image
image = Image.radial_gradient("L").resize((20, 24))
pixels = AutoImageProcessor.from_pretrained("org/livt-vit-b")(image, return_tensors="pt").pixel_values
with torch.inference_mode():
    model, base = (kind.from_pretrained("org/livt-vit-b") for kind in (AutoModelForImageClassification, AutoModel))
    logits = model(pixels).logits[0]
    features = base(pixels).pooler_output
    mae = AutoModelForPreTraining.from_pretrained("org/livt-mae")
    noise = torch.arange((mae.config.image_size // mae.config.patch_size) ** 2, 0, -1).float()[None]
    masked = AutoImageProcessor.from_pretrained("org/livt-mae")(image, return_tensors="pt").pixel_values
    loss = mae(masked, noise=noise)
    encoder = ViTMAEModel.from_pretrained("org/livt-mae")
scores = {row["label"]: row["score"] for row in pipeline("image-classification", "org/livt-vit-b")(image, top_k=10)}
with torch.inference_mode():
    same = torch.allclose(model.classifier(features)[0], logits, atol=1e-5)
print(json.dumps({"logits": logits.tolist(), "scores": scores, "names": list(model.config.id2label.values()),
    "loss": loss.loss.item(), "base": same, "encoder": type(encoder).__name__, "pixels": pixels.tolist(),
    "masked": masked.tolist()}))
"""
OURS = """
del sys.modules["livt_hf"]
from livt_hf import ViTForBalancedClassification
config = ViTForBalancedClassification.from_pretrained("org/livt-vit-b", cache_dir=sys.argv[1]).config
print(json.dumps({"counts": list(config.ordered_class_counts().items()), "loss": config.loss, "tau": config.tau}))
"""


def in_a_fresh_process(code, endpoint, cache, *words):
    """The JSON lines that a script prints; a new process, since the client reads its endpoint at import."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    command = [sys.executable, "-c", code, *map(str, words)]
    run = subprocess.run(command, capture_output=True, text=True, env={**inherited, **settings}, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


@pytest.fixture
def hub(monkeypatch):
    with serve(Hub(token=TOKEN)) as state:
        redirect_client(monkeypatch, state)
        monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: TOKEN)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # caches its endpoint
        yield state


def train(tmp_path, stage, name, *options):
    args, _ = parse_arguments(stage, [*SHORT, f"org/{name}", "--output_dir", str(tmp_path / name), *options])
    return (pretrain if stage is PretrainArguments else finetune)(args)


def test_the_loaded_model_equals_the_trained_and_pushed_one(hub, tmp_path):
    decoder = ["--decoder_hidden_size", "16", "--decoder_num_hidden_layers", "1", "--decoder_num_attention_heads", "2"]
    train(tmp_path, PretrainArguments, "livt-mae", *SMALL, *decoder)
    train(tmp_path, FinetuneArguments, "livt-vit-b", *LOADING, "--pretrained", str(tmp_path / "livt-mae"))
    for name in ("livt-mae", "livt-vit-b"):
        repository = hub.model(f"org/{name}")
        assert all(is_whole(files) for files in repository.commits.values())
        assert repository.messages[-1] == "Upload the trained model"
        assert not any(file.endswith((".pt", ".bin", "run.json")) for file in repository.files())
        assert f'"org/{name}"' in repository.files()["README.md"].decode()
    found, loaded = in_a_fresh_process(PLAIN + OURS, hub.endpoint, tmp_path / "cache", tmp_path / "other")
    here = ViTForBalancedClassification.from_pretrained(tmp_path / "livt-vit-b").eval()
    with torch.inference_mode():
        logits = here(torch.tensor(found["pixels"])).logits[0]
    np.testing.assert_allclose(found["logits"], logits.numpy(), atol=1e-5)
    names = list(here.config.id2label.values())
    assert found["names"] == names
    np.testing.assert_allclose([found["scores"][name] for name in names], logits.softmax(-1).numpy(), atol=1e-5)
    assert found["base"]
    assert found["encoder"] == "ViTMAEModel"
    mae = LivtMAEForPreTraining.from_pretrained(tmp_path / "livt-mae").eval()
    noise = torch.arange((mae.config.image_size // mae.config.patch_size) ** 2, 0, -1).float()[None]
    with torch.inference_mode():
        loss = mae(torch.tensor(found["masked"]), noise=noise).loss.item()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    counts = class_counts(load_long_tailed("digits")["train"])
    assert loaded == {"counts": [[*pair] for pair in counts.items()], "loss": "bal_bce", "tau": 1.0}


def test_a_rejected_upload_does_not_fail_the_run_and_livt_push_repeats_it(hub, tmp_path, capsys):
    hub.fail = lambda request, number: Failure(403)
    assert train(tmp_path, FinetuneArguments, "livt-vit-b", *SMALL) is not None
    warning = capsys.readouterr().err
    command = warning[warning.index("livt push") :].splitlines()[0].split()[1:]
    hub.fail = lambda request, number: None
    assert main(command) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == f"{hub.endpoint}/org/livt-vit-b"
    assert is_whole(hub.model("org/livt-vit-b").files())
    assert main([*command[:2], str(tmp_path / "nothing"), *command[3:]]) == 2


def test_a_trainer_of_ones_own_pushes_as_documented_upstream(hub, tmp_path):
    """`BalancedTrainer(push_to_hub=True)`: during training at every save, and `push_to_hub()` at the end."""
    images = load_long_tailed("digits")["train"].cast_column("image", Image())

    def pixels(examples):
        rows = [torch.tensor(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255.0 for image in examples["image"]]
        return {"pixel_values": rows, "label": examples["label"]}

    settings = {"max_steps": 4, "save_steps": 2, "push_to_hub": True, "hub_model_id": "org/direct", "report_to": "none"}
    trainer = BalancedTrainer(
        tiny("dinov2"),
        TrainingArguments(str(tmp_path), remove_unused_columns=False, use_cpu=True, **settings),
        train_dataset=images.with_transform(pixels),
        processing_class=ViTImageProcessor(size={"height": 8, "width": 8}),
    )
    trainer.train()
    trainer.push_to_hub()
    files = hub.model("org/direct").files()
    assert files["model.safetensors"] == (tmp_path / "checkpoint-4" / "model.safetensors").read_bytes()
    assert {"README.md", "config.json", "preprocessor_config.json"} <= set(files)
    assert json.loads(files["config.json"])["class_counts"] == class_counts(images)
