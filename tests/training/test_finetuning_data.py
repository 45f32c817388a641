"""Fine-tuning on a stream, and on images of which one cannot be read."""

import json
import shutil

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from helpers.training import QUIET, SIZES, finetune_arguments, log_lines
from livt_hf import LivtConfig, ViTForBalancedClassification
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.models.modeling_livt import config_for_classes
from livt_hf.training.finetuning import finetune


def test_it_trains_on_a_stream(tmp_path, caplog):
    digits = load_long_tailed("digits")["train"]
    for shard in range(2):
        digits.shard(2, shard).to_parquet(tmp_path / "set" / f"train-{shard:05}-of-00002.parquet")
    options = {"dataset": str(tmp_path / "set"), "streaming": True, "loss": "ce", "base_lr": 2e-2}
    options |= {"mixup": 0.0, "cutmix": 0.0, "rand_augment": "none", "random_erasing": 0.0, "label_smoothing": 0.0}
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps(class_counts(digits)))
    with caplog.at_level("INFO", logger="livt_hf"):
        assert finetune(finetune_arguments(tmp_path / "out", class_counts=str(counts), **options), QUIET) is None
    assert "--streaming reads training images only; evaluate with `livt evaluate" in caplog.text
    model = ViTForBalancedClassification.from_pretrained(tmp_path / "out")
    assert model.config.ordered_class_counts() == class_counts(digits)
    losses = [line["loss"] for line in log_lines(tmp_path / "out")]
    assert losses[-1] < 0.9 * losses[0]


def test_an_image_that_ends_the_evaluation_costs_no_training(tmp_path):
    """The trained model is kept and named; once the image is repaired, the same command evaluates it."""
    for split, count in (("train", 20), ("test", 4)):
        for index, (image, label) in enumerate(digits_images(count)):
            folder = tmp_path / "photos" / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{index}.png")
    broken = next((tmp_path / "photos" / "test").glob("*/*.png"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    args = finetune_arguments(
        tmp_path / "out", dataset=str(tmp_path / "photos"), batch_size=16, max_steps=2, mixup=0, cutmix=0
    )
    with pytest.raises(ValueError, match=r"cannot be decoded.*; the trained model is saved in .*; repeat the command"):
        finetune(args, QUIET)
    trained = load_file(tmp_path / "out" / "model.safetensors")
    broken.write_bytes(whole)
    results = finetune(args, QUIET)
    assert results["images"] == 4
    assert json.loads((tmp_path / "out" / "results.json").read_text())["accuracy"] == results["accuracy"]
    assert (tmp_path / "out" / "README.md").exists()
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(trained[name], again[name]) for name in trained)

    broken.write_bytes(whole[:60])  # and the figures of a model are not taken for those of the one that replaces it
    args.seed, args.resume = 1, "never"
    for checkpoint in (tmp_path / "out").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(ValueError, match="the trained model is saved"):
        finetune(args, QUIET)
    assert not (tmp_path / "out" / "results.json").exists()
    broken.write_bytes(whole)
    args.resume = "auto"
    assert finetune(args, QUIET)["seed"] == 1


def test_what_a_pretrained_classifier_or_the_machine_cannot_do_is_reported(tmp_path, capsys):
    with pytest.raises(ValueError, match="mixed_precision: fp16 needs a GPU; use bf16 or no"):
        finetune(finetune_arguments(tmp_path / "out", mixed_precision="fp16"), QUIET)
    classifier = ViTForBalancedClassification(
        LivtConfig(**SIZES, **config_for_classes(class_counts(load_long_tailed("digits"))), image_size=8, patch_size=2)
    )
    classifier.save_pretrained(tmp_path / "classifier")
    finetune(
        finetune_arguments(tmp_path / "out", pretrained=str(tmp_path / "classifier"), patch_size=4, max_steps=1), QUIET
    )
    assert "patch_size 4: not used, the sizes are those of" in capsys.readouterr().out
    with pytest.raises(ValueError, match="pooling: '.*' is a trained classifier and keeps its pooling; leave it out"):
        finetune(finetune_arguments(tmp_path / "out", pretrained=str(tmp_path / "classifier"), pooling="cls"), QUIET)


def digits_images(count: int) -> list[tuple[PIL.Image.Image, int]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images[:count] * 15.9).astype("uint8")
    return [(PIL.Image.fromarray(image), label % 2) for image, label in zip(pixels, digits.target, strict=False)]
