"""ONNX export: the same logits and preprocessing as the native classifier."""

import importlib.util
import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils.logging import disable_progress_bar

from helpers.conversion import NAMES, check_usage
from livt_hf.cli import main
from livt_hf.config.arguments import FinetuneArguments
from livt_hf.conversion.onnx_format import ONNX_PACKAGES, export_onnx
from livt_hf.data import load_long_tailed

needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ONNX_PACKAGES), reason="the extra `export` is not installed"
)
disable_progress_bar()


@needs_onnx
def test_onnx_gives_the_same_logits_for_any_batch_of_real_images(tmp_path, capsys, classifiers):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, model = tmp_path / "onnx", classifiers["global_pool"]
    options = ["--dataset", "digits", "--output_dir", str(folder)]
    assert main(["export", "--format", "onnx", "--model", str(model), *options]) == 0
    assert "64 images of digits: logits differ by at most" in capsys.readouterr().out
    check = json.loads((folder / "check.json").read_text())
    assert (check["images"], check["dataset"], check["split"], check["top1_agreement"]) == (64, "digits", "test", 100.0)
    assert check["largest_difference"] <= 1e-5
    times = check["milliseconds_per_image"]
    assert check["speed_ratio"] == pytest.approx(times["torch"] / times["onnxruntime"])

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [given.shape for given in session.get_inputs()] == [["batch", 3, 32, 32]]
    classifier = AutoModelForImageClassification.from_pretrained(model)
    processor = AutoImageProcessor.from_pretrained(folder)
    images = [row["bytes"] for row in load_long_tailed("digits")["test"].with_format(None)[:5]["image"]]
    pixels = processor([_open(content) for content in images], return_tensors="pt").pixel_values
    for batch in (pixels[:1], pixels[:2], pixels):
        with torch.no_grad():
            expected = classifier(batch).logits.numpy()
        (logits,) = session.run(None, {"pixel_values": batch.numpy()})
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)

    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == NAMES
    assert json.loads(metadata["preprocessing"]) == {
        "convert": "RGB",
        "resize_shortest_edge": 36,
        "resize": None,
        "interpolation": "bicubic",
        "center_crop": {"height": 32, "width": 32},
        "rescale": pytest.approx(1 / 255),
        "mean": [0.466, 0.471, 0.380],
        "std": [0.195, 0.194, 0.192],
        "layout": "NCHW",
    }
    assert AutoImageProcessor.from_pretrained(model).to_dict() == processor.to_dict()


def _open(content):
    import io

    return PIL.Image.open(io.BytesIO(content))


@needs_onnx
def test_the_code_of_the_card_classifies_a_photo(tmp_path, monkeypatch, capsys, classifiers):
    folder = tmp_path / "onnx"
    check = export_onnx(classifiers["global_pool"], folder, num_images=8)
    assert (check["dataset"], check["split"]) == ("random noise", None)
    assert "has no record of its training images: it is compared on random noise" in capsys.readouterr().out
    monkeypatch.chdir(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).resize((70, 91), PIL.Image.Resampling.BICUBIC).save("photo.jpg", quality=95)
    check_usage(folder / "README.md", classifiers["global_pool"], capsys)


def record_of(folder, classifier, **arguments):
    """A copy of a classifier with a record of its training."""
    shutil.copytree(classifier, folder)
    args = vars(FinetuneArguments()) | arguments
    (folder / "run.json").write_text(json.dumps({"arguments": args, "steps": 1}))
    return folder


@needs_onnx
def test_by_default_it_is_compared_on_the_images_of_the_training(tmp_path, data, classifiers, capsys):
    model = record_of(tmp_path / "model", classifiers["cls_token"], dataset=str(data))
    assert main(["export", "--format", "onnx", "--model", str(model), "--output_dir", str(tmp_path / "a")]) == 0
    check = json.loads((tmp_path / "a" / "check.json").read_text())
    assert (check["dataset"], check["split"], check["images"]) == (data.name, "test", 2)
    assert f"2 images of {data.name}: logits" in capsys.readouterr().out
    model = record_of(tmp_path / "moved", classifiers["cls_token"], dataset=str(tmp_path / "gone"))
    assert export_onnx(model, tmp_path / "b", num_images=8)["dataset"] == "random noise"
    assert "the training images cannot be loaded (dataset: " in capsys.readouterr().out


@needs_onnx
def test_weights_too_large_for_one_onnx_file_are_saved_beside_it(tmp_path, monkeypatch, classifiers):
    monkeypatch.setattr("livt_hf.conversion.onnx_format.ONE_FILE_LIMIT", 0)
    check = export_onnx(classifiers["cls_token"], tmp_path / "onnx", num_images=8)
    assert (tmp_path / "onnx" / "model.onnx.data").stat().st_size > 300_000
    assert check["largest_difference"] <= 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_images", "2"], "num_images: 2; at least 8 are needed"),
        (["--dataset", "digits", "--split", "dev"], "split: digits has no split 'dev'; choose one of train, "),
        (["--dataset", "nowhere"], "dataset: 'nowhere' is "),
    ],
)
@needs_onnx
def test_what_cannot_be_compared_is_named(tmp_path, capsys, classifiers, options, message):
    argv = [
        "export",
        "--format",
        "onnx",
        "--model",
        str(classifiers["cls_token"]),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert main([*argv, *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


def test_without_its_packages_onnx_explains_how_to_install_them(tmp_path, monkeypatch, classifiers):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(
        ValueError, match=r"^format: onnx needs onnxscript; install .* pip install 'livt-hf\[export\]'$"
    ):
        export_onnx(classifiers["global_pool"], tmp_path / "out")
