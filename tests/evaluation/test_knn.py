"""The k-NN probe: votes computed by hand, features equal to the encoder's, the same numbers from two processes."""

import json
import math

import pytest
import torch
from accelerate import Accelerator

from livt_hf import LivtMAEForPreTraining
from livt_hf.config.arguments import PretrainArguments
from livt_hf.data import EvalTransform, ImageDataset, class_counts, load_long_tailed
from livt_hf.evaluation.knn import encode, knn_accuracy, knn_predictions
from livt_hf.models.configuration_livt import LivtMAEConfig
from livt_hf.training.pretraining import pretrain

pytestmark = pytest.mark.usefixtures("unrendered")

SIZES = {
    "image_size": 8,
    "patch_size": 2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
}
STATISTICS = {"mean": (0.3,) * 3, "std": (0.4,) * 3, "batch_size": 32, "num_workers": 0}


def test_neighbors_vote_with_exp_of_their_cosine_similarity():
    """Angles 0, 10, 20 degrees: two distant votes for class 1 against one near vote for class 0."""
    angles = torch.tensor([0.0, 10.0, 20.0]) * math.pi / 180
    bank = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.1]])  # length is ignored
    labels = torch.tensor([0, 1, 1])
    query = torch.tensor([[3.0, 0.0]])
    votes = [math.exp(1 / 0.07), math.exp(math.cos(angles[1]) / 0.07) + math.exp(math.cos(angles[2]) / 0.07)]
    assert votes[1] > votes[0]
    assert knn_predictions(bank, labels, query, 2, neighbors=3).tolist() == [1]
    assert knn_predictions(bank, labels, query, 2, neighbors=1).tolist() == [0]
    assert knn_predictions(bank, labels, query, 2, neighbors=3, temperature=0.02).tolist() == [0]


def test_no_image_votes_on_itself():
    """300 images, more than one chunk of queries: pairs of the same direction with swapped labels."""
    angles = torch.arange(150).repeat_interleave(2) * (math.pi / 300)
    bank = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.arange(300) % 2
    own = knn_predictions(bank, labels, bank, 2, neighbors=1, leave_one_out=True)
    assert torch.equal(own, 1 - labels)


def test_features_are_the_mean_of_the_encoders_patches():
    torch.manual_seed(0)
    model = LivtMAEForPreTraining(LivtMAEConfig(**SIZES)).eval()
    pixels = torch.randn(3, 3, 8, 8)
    everything = LivtMAEForPreTraining(LivtMAEConfig(**SIZES, mask_ratio=1e-9)).eval()
    everything.load_state_dict(model.state_dict())
    everything.vit.config.mask_ratio = 0.0
    expected = everything.vit(pixels).last_hidden_state[:, 1:].mean(dim=1)
    torch.testing.assert_close(model.features(pixels), expected)


def test_probe_of_a_split_equals_sklearn():
    from sklearn.neighbors import KNeighborsClassifier

    torch.manual_seed(0)
    model = LivtMAEForPreTraining(LivtMAEConfig(**SIZES)).eval()
    splits = load_long_tailed("digits")
    train, validation = (ImageDataset(splits[name], EvalTransform(8, 1.0)) for name in ("train", "validation"))
    accelerator = Accelerator(cpu=True)
    bank, labels = (part.numpy() for part in encode(accelerator, model, train, **STATISTICS))
    queries, answers = (part.numpy() for part in encode(accelerator, model, validation, **STATISTICS))
    reference = KNeighborsClassifier(
        20, metric="cosine", weights=lambda distance: torch.tensor((1 - distance) / 0.07).exp().numpy()
    )
    expected = 100 * reference.fit(bank, labels).score(queries, answers)
    counts, groups = class_counts(splits["train"]), {"many": 50, "few": 15, "by": "count"}
    values = knn_accuracy(accelerator, model, train, validation, counts, groups, **STATISTICS)
    assert values["probe_accuracy"] == pytest.approx(expected, abs=1e-3)
    assert set(values) == {f"probe_{name}" for name in ("accuracy", "many", "medium", "few")}


def test_a_monitored_run_takes_the_same_steps_and_resumes_with_its_probes(tmp_path):
    options = {**SIZES, "dataset": "digits", "batch_size": 32, "max_steps": 24, "base_lr": 4e-3, "num_workers": 0}
    options |= {"save_every": 8, "logging_steps": 5, "epochs": 100, "warmup_epochs": 10}
    monitoring = {"probe_every": 0.8, "picture_every": 1.0}  # epochs of 10 steps

    def lines(folder):
        logged = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in line.items() if name != "images_per_second"} for line in logged]

    pretrain(PretrainArguments(**options, output_dir=str(tmp_path / "plain")))
    pretrain(PretrainArguments(**options, **monitoring, output_dir=str(tmp_path / "monitored")))
    probes = [line for line in lines("monitored") if "probe_accuracy" in line]
    assert [line["step"] for line in probes] == [0, 8, 16, 24]
    assert [line for line in lines("monitored") if "loss" in line] == lines("plain")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "monitored")]
    assert weights[0] == weights[1]
    pictures = {path.name for path in (tmp_path / "monitored" / "reconstructions").iterdir()}
    assert pictures == {"step-0000000.png", "step-0000010.png", "step-0000020.png"}

    whole = lines("monitored")
    for name in ("model.safetensors", "run.json"):
        (tmp_path / "monitored" / name).unlink()
    pretrain(PretrainArguments(**options, **monitoring, output_dir=str(tmp_path / "monitored")))
    assert lines("monitored") == whole
