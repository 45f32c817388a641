"""The whole card of a masked autoencoder, and names that try to break it."""

import json

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from helpers.paths import FIXTURES
from livt_hf.config.arguments import PretrainArguments
from livt_hf.config.parsing import parse_arguments
from livt_hf.models.configuration_livt import LivtMAEConfig
from livt_hf.reporting.blocks import to_markdown
from livt_hf.reporting.card import hyperparameters, write_autoencoder_card
from livt_hf.training.record import RunOptions

FIXTURE = FIXTURES / "pretraining_card.md"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "mae"
    folder.mkdir()
    LivtMAEConfig(image_size=32, patch_size=4, hidden_size=96, num_hidden_layers=6).save_pretrained(folder)
    options = ["--dataset", "/home/someone/photos", "--epochs", "50", "--batch_size", "32", "--output_dir", str(folder)]
    args, _ = parse_arguments(PretrainArguments, options)
    record = RunOptions(args).record(1234) | {"versions": {"torch": "2.15.0", "transformers": "5.23.0"}}
    (folder / "run.json").write_text(json.dumps(record))
    lines = [{"step": 10, "epoch": 0.5, "loss": 1.01}, {"step": 1234, "epoch": 50.0, "loss": 0.42187}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 12')
    (folder / "reconstructions.png").touch()
    return folder


def test_whole_card(folder):
    hardware = {"device": "cpu", "cpu": "Chip", "cores": 2}
    path = write_autoencoder_card(folder, repo_id="org/mae", dataset_id="org/photos", images=331, hardware=hardware)
    assert path.read_text(encoding="utf-8") == FIXTURE.read_text(encoding="utf-8")
    with Image.open(folder / "loss_curve.png") as curve:
        assert curve.width > 500
    assert ModelCard.load(path).data.pipeline_tag == "image-feature-extraction"


def test_a_folder_with_nothing_but_a_model_gets_a_card_too(folder):
    for name in ("run.json", "metrics.jsonl", "reconstructions.png"):
        (folder / name).unlink()
    text = write_autoencoder_card(folder).read_text()
    assert "on a dataset that is not recorded" in text
    assert ".png" not in text


def test_a_record_without_a_command_gives_a_card_without_one(folder):
    record = json.loads((folder / "run.json").read_text())
    del record["command"]
    (folder / "run.json").write_text(json.dumps(record))
    assert "## Training setup\n\nVersions: torch" in write_autoencoder_card(folder).read_text()


def test_names_cannot_change_the_card(folder):
    record = json.loads((folder / "run.json").read_text())
    record["arguments"]["dataset"] = "a|b\n```\n<script>alert(1)</script> 😀"
    record["command"] = "livt pretrain --dataset 'a|b ``` <script>alert(1)</script> 😀'"
    (folder / "run.json").write_text(json.dumps(record))
    text = write_autoencoder_card(folder).read_text()
    before, command = text.split("## Training setup")
    assert "<script" not in before
    assert "a&#124;b &#96;&#96;&#96; &#60;script&#62;" in before
    assert command.startswith("\n\n````bash\n")  # a fence that the name's cannot end


def test_max_steps_replaces_the_epochs(folder):
    record = json.loads((folder / "run.json").read_text())
    assert "| `epochs` |" in to_markdown(hyperparameters(record))
    record["arguments"]["max_steps"] = 7
    assert "| `epochs` |" not in to_markdown(hyperparameters(record))
    assert "| `max_steps` | 7 |" in to_markdown(hyperparameters(record))
