"""Views of test-time ensembling against crops made by hand with Pillow, and the mean of their probabilities."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from PIL import Image, ImageOps
from transformers import (
    AutoImageProcessor,
    BeitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)

from helpers.images import COUNTS, write_images
from helpers.tiny_models import save_tiny
from livt_hf.evaluation.evaluate import evaluate_checkpoint, evaluate_model
from livt_hf.evaluation.predict import predict_images
from livt_hf.evaluation.predictions import ProcessorTransform, predict_split
from livt_hf.evaluation.test_time import VIEWS, ViewProcessor, ensemble_logits, margin

pytestmark = pytest.mark.usefixtures("unrendered")

RAW = {"do_rescale": False, "do_normalize": False, "input_data_format": "channels_first"}


def photo(width, height, seed=0):
    """A smooth image, whose resizing differs little between libraries."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def crops_by_hand(image, size, resized):
    """Corners and center, with Pillow: as torchvision's FiveCrop."""
    image = image.resize(resized, Image.Resampling.BICUBIC)
    right, bottom = resized[0] - size, resized[1] - size
    places = [(0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2), round(bottom / 2))]
    return torch.stack([tensor(image.crop((left, top, left + size, top + size))) for left, top in places])


def test_the_margin_is_24_pixels_at_224():
    assert [margin(side) for side in (224, 448, 336, 96, 32, 8, 4)] == [24, 48, 36, 10, 3, 1, 1]


SQUARE = {"height": 56, "width": 56}
PROCESSORS = {
    # input size, then the size (width, height) to which a photo of 100 x 70 pixels is resized
    "beit": (BeitImageProcessor(size={"shortest_edge": 64}, crop_size=SQUARE, do_center_crop=True), 56, (88, 62)),
    "clip": (CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=SQUARE), 56, (88, 62)),
    "vit": (ViTImageProcessor(size=SQUARE, resample=3), 56, (62, 62)),
    "siglip": (SiglipImageProcessor(size=SQUARE), 56, (62, 62)),
    "convnext": (ConvNextImageProcessor(size={"shortest_edge": 56}, crop_pct=0.875, resample=3), 56, (88, 62)),
    "warped": (ConvNextImageProcessor(size={"shortest_edge": 384}, resample=3), 384, (425, 425)),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_five_crops_are_those_of_pillow_at_the_size_of_each_processor(kind):
    processor, size, resized = PROCESSORS[kind]
    image = photo(100, 70)
    views = ViewProcessor(processor, "fivecrop")(tensor(image), **RAW)
    expected = crops_by_hand(image, size, resized)
    assert views.shape == expected.shape == (5, 3, size, size)
    assert (views.int() - expected.int()).abs().max() <= 2  # rounding
    assert (expected[0].int() - expected[3].int()).abs().max() > 20  # the corners differ
    # Normalized as the processor normalizes, also from a Pillow image
    once = processor(list(expected), do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
    assert (ViewProcessor(processor, "fivecrop")(image) - once).abs().max() < 0.04


def test_five_crops_of_timms_processor_are_resized_and_normalized_as_timm_does(tmp_path):
    folder = save_tiny("timm", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] = {"input_size": [3, 56, 56], "mean": [0.4] * 3, "std": [0.2] * 3, "crop_pct": 0.9}
    (folder / "config.json").write_text(json.dumps(config))
    processor = AutoImageProcessor.from_pretrained(folder)
    image = photo(100, 70)
    expected = (crops_by_hand(image, 56, (88, 62)) / 255 - 0.4) / 0.2
    found = ViewProcessor(processor, "fivecrop")(image)
    assert (found - expected).abs().max() < 0.03
    (plain,) = ViewProcessor(processor)(image)
    assert (plain - processor(image, return_tensors="pt").pixel_values[0]).abs().max() == 0
    # The center crop is close to timm's own view, which is resized to 62 pixels, too
    assert (found[4] - plain).abs().max() < 0.03


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_flip_is_the_mirror_image_of_the_processors_view(kind):
    processor = PROCESSORS[kind][0]
    image = photo(64, 64)
    plain = processor(image, return_tensors="pt").pixel_values
    views = ViewProcessor(processor, "flip")(image)
    torch.testing.assert_close(views[:1], plain, rtol=0, atol=0)
    mirrored = processor(ImageOps.mirror(image), return_tensors="pt").pixel_values
    assert (views[1:] - mirrored).abs().max() < 0.04  # rounding of the resized pixels
    torch.testing.assert_close(ViewProcessor(processor)(image), plain, rtol=0, atol=0)


def test_what_cannot_be_done_is_one_line():
    with pytest.raises(ValueError, match="^tta: 'tencrop' is unknown; use one of: none, flip, fivecrop$"):
        ViewProcessor(PROCESSORS["beit"][0], "tencrop")
    uneven = BeitImageProcessor(size={"shortest_edge": 64}, do_center_crop=False)
    with pytest.raises(ValueError, match="^tta: fivecrop needs an image processor that resizes all images to one size"):
        ViewProcessor(uneven, "fivecrop")
    assert ViewProcessor(uneven, "flip")(photo(100, 70)).shape[0] == 2


def test_ensembled_logits_are_the_logarithm_of_the_mean_probability():
    logits = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0)) * 4
    mean = logits.softmax(-1).mean(0)
    torch.testing.assert_close(ensemble_logits(list(logits)).softmax(-1), mean)
    torch.testing.assert_close(ensemble_logits(list(logits)), mean.log())
    torch.testing.assert_close(ensemble_logits([logits[0]]).softmax(-1), logits[0].softmax(-1))
    assert torch.isfinite(ensemble_logits([torch.tensor([[0.0, -1e4]])] * 2)).all()


class Brightness(torch.nn.Module):
    """Logits 0 and 4 times the mean of the left half, in 0 .. 1."""

    dtype = torch.float32

    def forward(self, pixel_values):
        left = 4 * pixel_values[..., : pixel_values.shape[-1] // 2].mean(dim=(1, 2, 3))
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(left), left], dim=1))


def predicted(pixels, tta, **options):
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, resample=3)
    views = torch.stack([ProcessorTransform(processor, tta)(image)["pixel_values"] for image in pixels])
    loader = [{"pixel_values": views, "labels": torch.ones(len(pixels), dtype=torch.int64)}]
    return predict_split(Brightness(), loader, (0.0,) * 3, (1.0,) * 3, **options)


def test_probabilities_of_a_split_are_means_over_the_views():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[..., :4] = 255  # bright on the left: logits 0 and 4, mirrored 0 and 0
    expected = (1 / (1 + np.exp(-4)) + 0.5) / 2
    assert predicted([image], "flip")["true_probabilities"] == pytest.approx(expected, rel=1e-6)
    shifts = np.log([[0.5, 0.5], [0.9, 0.1]])  # the prior shift applies to the mean: 0.1 * 0.74 < 0.9 * 0.26
    assert predicted([image], "flip", shifts=shifts)["shifted_predictions"].tolist() == [[1, 0]]
    assert predicted([image], "none", shifts=shifts)["shifted_predictions"].tolist() == [[1, 1]]


def test_a_flip_changes_nothing_for_symmetric_images_and_five_crops_nothing_for_plain_ones():
    half = torch.randint(0, 256, (3, 8, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    symmetric = torch.cat([half, half.flip(-1)], dim=-1)
    plain = torch.full((3, 8, 8), 77, dtype=torch.uint8)
    for image, tta in ((symmetric, "flip"), (plain, "flip"), (plain, "fivecrop")):
        for name in ("confidences", "true_probabilities"):
            assert predicted([image], tta)[name] == pytest.approx(predicted([image], "none")[name], rel=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m"
    save_tiny("vit", path, num_labels=2, id2label={0: "ant", 1: "bee"}, class_counts=COUNTS)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    write_images(path)
    return path


@pytest.mark.parametrize("tta", ["flip", "fivecrop"])
def test_evaluation_and_prediction_agree_and_say_so(folder, photos, tmp_path, tta, capsys):
    from livt_hf.data import load_long_tailed

    split = load_long_tailed(photos)["train"]
    results = evaluate_checkpoint(folder, DatasetDict(test=split), output_dir=tmp_path, tta=tta, test_prior=True)
    assert results["tta"] == json.loads((tmp_path / "results.json").read_text())["tta"] == tta
    for name in ("report.md", "report.html"):
        assert f"Test-time ensembling ({tta}): mean of the probabilities over" in (tmp_path / name).read_text()
    assert len(results["test_prior"]) == 11
    capsys.readouterr()
    paths = [row["path"] for row in split["image"]]
    answers = list(predict_images(folder, paths, device="cpu", tta=tta))
    assert capsys.readouterr().out == f"tta: {tta}; scores are means over {VIEWS[tta]} views of each image\n"
    best = [answer["predictions"][0] for answer in answers]
    names = split.features["label"].names
    right = [names[label] == of["label"] for label, of in zip(split["label"], best, strict=True)]
    assert results["accuracy"] == pytest.approx(100 * np.mean(right))
    plain = list(predict_images(folder, paths, device="cpu"))
    assert [of["predictions"] for of in plain] != [of["predictions"] for of in answers]


def test_without_it_results_say_none(folder, photos):
    from livt_hf.data import load_long_tailed
    from livt_hf.models.loading import load_classifier

    results = evaluate_model(*_with_split(load_classifier(folder), load_long_tailed(photos)["train"]))
    assert results["tta"] is None


def _with_split(loaded, split):
    return loaded[0], split, loaded[1]
