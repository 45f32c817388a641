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
from livt_hf.evaluation.evaluate import evaluate_checkpoint
from livt_hf.models.modeling_livt import config_for_classes
from livt_hf.training.finetuning import finetune

pytestmark = pytest.mark.usefixtures("unrendered")


def test_it_trains_on_a_stream_and_evaluates(tmp_path):
    splits = load_long_tailed("digits")
    digits = splits["train"]
    for split in ("validation", "test"):
        splits[split].to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    for shard in range(2):
        digits.shard(2, shard).to_parquet(tmp_path / "set" / f"train-{shard:05}-of-00002.parquet")
    options = {"dataset": str(tmp_path / "set"), "streaming": True, "loss": "ce", "base_lr": 2e-2}
    options |= {"mixup": 0.0, "cutmix": 0.0, "rand_augment": "none", "random_erasing": 0.0, "label_smoothing": 0.0}
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps(class_counts(digits)))
    results = finetune(finetune_arguments(tmp_path / "out", class_counts=str(counts), **options), QUIET)
    assert (results["split"], results["images"]) == ("test", 400)
    assert {"results.json", "README.md", "report.html"} <= {file.name for file in (tmp_path / "out").iterdir()}
    assert any("eval_accuracy" in line for line in log_lines(tmp_path / "out"))  # on the validation split
    again = evaluate_checkpoint(tmp_path / "out", splits, output_dir=tmp_path / "report")
    assert again["accuracy"] == results["accuracy"]
    model = ViTForBalancedClassification.from_pretrained(tmp_path / "out")
    assert model.config.ordered_class_counts() == class_counts(digits)
    losses = [line["loss"] for line in log_lines(tmp_path / "out") if "loss" in line]
    assert losses[-1] < 0.9 * losses[0]


def test_a_stream_is_not_divided(tmp_path):
    for option in ("val_fraction", "test_fraction"):
        args = finetune_arguments(tmp_path / "out", streaming=True, **{option: 0.1})
        with pytest.raises(ValueError, match=f"^{option}: a stream cannot be divided; leave out one of the two"):
            finetune(args, QUIET)


def test_images_held_out_are_evaluated_by_the_run_and_later(tmp_path, caplog):
    for index, (image, label) in enumerate(digits_images(40)):
        (tmp_path / "photos" / str(label)).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "photos" / str(label) / f"{index}.png")
    options = {"val_fraction": 0.2, "test_fraction": 0.2}
    settings = {"batch_size": 8, "max_steps": 2, "mixup": 0, "cutmix": 0}
    args = finetune_arguments(tmp_path / "out", dataset=str(tmp_path / "photos"), **settings, **options)
    results = finetune(args, QUIET)
    assert (results["split"], results["images"], sum(results["class_counts"].values())) == ("test", 8, 24)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["arguments"]["test_fraction"] == 0.2
    assert "--val_fraction 0.2 --test_fraction 0.2" in record["command"]
    for given in (options, {"val_fraction": 0.2}, {}):  # those of the run are taken
        caplog.clear()
        again = evaluate_checkpoint(tmp_path / "out", tmp_path / "photos", output_dir=tmp_path / "report", **given)
        assert again["predicted_counts"] == results["predicted_counts"]
        assert not [record for record in caplog.records if record.levelname == "WARNING"]
    options = {"output_dir": tmp_path / "report", "test_fraction": 0.4}
    evaluate_checkpoint(tmp_path / "out", tmp_path / "photos", **options)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(
        f"test_fraction: {tmp_path / 'out'} was trained with 0.2: with 0.4, it may be evaluated on"
    )


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
    with pytest.raises(ValueError, match="pooling: '.*' has a pooling of its own, which it keeps; leave it out"):
        finetune(finetune_arguments(tmp_path / "out", pretrained=str(tmp_path / "classifier"), pooling="cls"), QUIET)


def digits_images(count: int) -> list[tuple[PIL.Image.Image, int]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images[:count] * 15.9).astype("uint8")
    return [(PIL.Image.fromarray(image), label % 2) for image, label in zip(pixels, digits.target, strict=False)]
