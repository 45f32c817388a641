"""Fine-tuning on a stream, and on images of which one cannot be read."""

import json

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from test_finetuning import QUIET, arguments, log_lines

from livt_hf import ViTForBalancedClassification
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.finetuning import finetune


def test_it_trains_on_a_stream(tmp_path):
    digits = load_long_tailed("digits")["train"]
    for shard in range(2):
        digits.shard(2, shard).to_parquet(tmp_path / "set" / f"train-{shard:05}-of-00002.parquet")
    options = {"dataset": str(tmp_path / "set"), "streaming": True, "loss": "ce", "base_lr": 2e-2}
    options |= {"mixup": 0.0, "cutmix": 0.0, "rand_augment": "none", "random_erasing": 0.0, "label_smoothing": 0.0}
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps(class_counts(digits)))
    assert finetune(arguments(tmp_path / "out", class_counts=str(counts), **options), QUIET) is None
    model = ViTForBalancedClassification.from_pretrained(tmp_path / "out")
    assert model.config.ordered_class_counts() == class_counts(digits)
    losses = [line["loss"] for line in log_lines(tmp_path / "out")]
    assert losses[-1] < 0.9 * losses[0]


def test_an_image_that_ends_the_evaluation_costs_no_training(tmp_path):
    """The trained model is kept and named; once the image is mended, the same command evaluates it."""
    for split, count in (("train", 20), ("test", 4)):
        for index, (image, label) in enumerate(digits_images(count)):
            folder = tmp_path / "photos" / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{index}.png")
    broken = next((tmp_path / "photos" / "test").glob("*/*.png"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    args = arguments(tmp_path / "out", dataset=str(tmp_path / "photos"), batch_size=16, max_steps=2, mixup=0, cutmix=0)
    with pytest.raises(
        ValueError, match=r"cannot be decoded.*; the trained model is saved in .*, and the same command"
    ):
        finetune(args, QUIET)
    trained = load_file(tmp_path / "out" / "model.safetensors")
    broken.write_bytes(whole)
    results = finetune(args, QUIET)
    assert results["images"] == 4
    assert json.loads((tmp_path / "out" / "results.json").read_text())["accuracy"] == results["accuracy"]
    assert (tmp_path / "out" / "README.md").exists()
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(trained[name], again[name]) for name in trained)


def digits_images(count: int) -> list[tuple[PIL.Image.Image, int]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images[:count] * 15.9).astype("uint8")
    return [(PIL.Image.fromarray(image), label % 2) for image, label in zip(pixels, digits.target, strict=False)]
