"""`livt demo`: the prior shift, the served app, and the Space without livt_hf."""
# ruff: noqa: E402  gradio is an extra, and without it nothing here can be imported

import json
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import BeitImageProcessor

gradio = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")

from livt_hf import ClassPrior, LivtConfig, LivtMAEForPreTraining, ViTForBalancedClassification
from livt_hf.class_names import label_names, printable
from livt_hf.cli import main
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.demo import app as demo_app
from livt_hf.demo.serve import demo, head_and_tail
from livt_hf.evaluation.predict import predict_images
from livt_hf.evaluation.prior_shift import assumed_log_prior
from livt_hf.losses import BALANCED_LOSSES
from livt_hf.models.configuration_livt import LivtMAEConfig

COUNTS = {str(digit): 120 - 13 * digit for digit in range(10)}  # of the digits' classes, 120 to 3
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
}

SPACE = """
import json, sys
sys.modules["livt_hf"] = None
sys.path.insert(0, sys.argv[1])
from PIL import Image
import app, demo_app
space = app.demo
classify = next(function.fn for function in space.fns.values() if function.api_name == "classify")
print(json.dumps(classify(Image.open(sys.argv[2]), float(sys.argv[3]))))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "digit-classifier"
    torch.manual_seed(0)
    config = LivtConfig(**SIZES, class_counts=COUNTS, loss="bal_bce", **label_names(list(COUNTS)))
    model = ViTForBalancedClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=0.1)
    model.save_pretrained(path)
    _processor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    path = tmp_path_factory.mktemp("mae")
    decoder = {f"decoder_{name}": SIZES[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    LivtMAEForPreTraining(LivtMAEConfig(**SIZES, **decoder, decoder_num_hidden_layers=1)).save_pretrained(path)
    _processor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def _processor():
    return BeitImageProcessor(
        size={"height": 16, "width": 16},
        do_center_crop=False,
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.4],
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _config(counts, **fields):
    return SimpleNamespace(num_labels=len(counts), class_counts=counts, id2label=dict(enumerate(counts)), **fields)


def test_the_shift_leads_from_the_assumed_prior_to_that_of_the_slider():
    counts = {"cat": 60, "dog": 30, "emu": 10}
    position = 0.25
    target = np.array([0.6, 0.3, 0.1]) ** 0.75
    for fields in (
        {"loss": "ce"},
        {},
        *({"loss": loss, "tau": tau} for loss in BALANCED_LOSSES for tau in (1.0, 0.5)),
        {"loss": "ce", "class_balanced_batches": True},
        {"loss": "ce", "adjustment": {"target_prior": "uniform"}},
        {"loss": "bal_ce", "tau": 1.0, "adjustment": {"target_prior": "train"}},
    ):
        config = _config(counts, **fields)
        expected = np.log(target) - assumed_log_prior(config, ClassPrior(counts))
        difference = demo_app.prior_shift(config, position) - expected
        np.testing.assert_allclose(difference, difference[0], atol=1e-12)  # a constant changes nothing
        own = 1.0 - demo_app.assumed_exponent(config)
        np.testing.assert_array_equal(demo_app.prior_shift(config, own), 0.0)


def test_a_model_trained_with_ce_is_itself_at_0_and_logit_adjusted_at_1():
    config = _config({"cat": 60, "dog": 30, "emu": 10}, loss="ce")
    np.testing.assert_array_equal(demo_app.prior_shift(config, 0.0), 0.0)
    np.testing.assert_allclose(demo_app.prior_shift(config, 1.0), -np.log([0.6, 0.3, 0.1]))


@pytest.mark.parametrize(
    "config",
    [
        SimpleNamespace(num_labels=2, class_counts=None),
        _config({"cat": 2, "dog": 1}, loss="ce", adjustment={"tau_norm": 1.0}),
        _config({"cat": 2, "dog": 1}, loss="ce", adjustment={"target_prior": {"cat": 0.9, "dog": 0.1}}),
    ],
)
def test_models_that_assume_another_kind_of_prior_are_not_shifted(config):
    assert demo_app.assumed_exponent(config) is None
    np.testing.assert_array_equal(demo_app.prior_shift(config, 0.3), 0.0)


def test_the_app_answers_as_predict_does_and_follows_the_slider(folder, mae, image, capsys):
    port = _free_port()
    page = demo(folder, mae=mae, dataset="digits", host="localhost", port=port, block=False)
    try:
        assert capsys.readouterr().out == f"demo: http://localhost:{port}\n"
        assert page.title == "digit-classifier: image classification"
        client = gradio_client.Client(f"http://127.0.0.1:{port}", verbose=False)
        file = gradio_client.handle_file(image)
        own, table = client.predict(file, 1.0, api_name="/classify")  # tau = 1: the logits assume a uniform prior
        (expected,) = predict_images(folder, [image], top_k=5)
        assert _scores(own) == pytest.approx(_scores_of(expected), abs=1e-5)
        assert [row[:2] for row in table["data"]] == [[name, COUNTS[name]] for name in _scores(own)]

        (everything,) = predict_images(folder, [image], top_k=10)
        weights = {name: score * COUNTS[name] for name, score in _scores_of(everything).items()}
        trained, _ = client.predict(file, 0.0, api_name="/classify")
        for name, score in _scores(trained).items():
            assert score == pytest.approx(weights[name] / sum(weights.values()), abs=1e-5)
        assert list(_scores(trained)) != list(_scores(own))

        with Image.open(client.predict(file, api_name="/attention")) as picture:
            assert picture.size == (336, 336)
        with Image.open(client.predict(file, api_name="/reconstruct")) as picture:
            assert picture.size == (2 * 336, 336)
    finally:
        page.close()


def test_the_page_opens_with_the_first_example(folder):
    first, second = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))
    classifier = demo_app.Classifier(ViTForBalancedClassification.from_pretrained(folder), _processor())
    page = demo_app.build_app(classifier, "title", [(first, "0"), (second, "1")])
    (load,) = [function for function in page.fns.values() if (page._id, "load") in function.targets]
    assert load.fn() is first
    assert [output.elem_id for output in load.outputs] == ["image"]


def test_an_upload_that_is_not_an_image_is_named_on_the_page(folder, tmp_path):
    classifier = demo_app.Classifier(ViTForBalancedClassification.from_pretrained(folder), _processor())
    page = demo_app.build_app(classifier, "title")
    (component,) = [block for block in page.blocks.values() if block.elem_id == "image"]
    Image.new("RGB", (90, 90), "red").save(tmp_path / "whole.png")
    (tmp_path / "notes<1>.png").write_text("hello")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:90])
    for name, shown in (("notes<1>.png", "notes&lt;1&gt;.png"), ("half.png", "half.png")):
        upload = gradio.image_utils.ImageData(path=str(tmp_path / name), orig_name=name)
        with pytest.raises(gradio.Error) as error:
            component.preprocess(upload)
        assert error.value.message == f"{shown} is not an image that can be read; use a JPEG, PNG or WebP file."
        assert error.value.print_exception is False  # no traceback in the terminal
    assert component.preprocess(gradio.image_utils.ImageData(path=str(tmp_path / "whole.png"))).size == (90, 90)


def test_attention_is_the_mean_that_each_patch_receives(folder, image):
    model = ViTForBalancedClassification.from_pretrained(folder, attn_implementation="eager").eval()
    classifier = demo_app.Classifier(model, _processor())
    picture = Image.open(image)
    pixel_values = _processor()(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        last = model(pixel_values, output_attentions=True).attentions[-1]  # (1, 2, 17, 17)
    received = classifier.attention(picture)
    assert received.shape == (4, 4)
    for row, column in ((0, 0), (1, 2), (3, 3)):
        expected = last[0, :, :, 1 + 4 * row + column].mean()
        assert received[row, column] == pytest.approx(float(expected), rel=1e-5)


def test_names_are_shown_as_in_reports():
    """The Space runs without this package, so it has a function of its own."""
    for mark in map(chr, range(0x2100)):
        escape = printable(mark)
        assert demo_app.shown(mark) == (escape if escape.startswith("\\u") else mark)
    assert demo_app.shown("abc\u202edef") == r"abc\u202edef"


def test_examples_are_those_of_the_largest_and_the_smallest_classes():
    config = _config(COUNTS)
    examples = head_and_tail(load_long_tailed("digits")["test"], config, number=4)
    assert [caption for _, caption in examples] == [
        "0 · 120",
        "1 · 107",
        "8 · 16",
        "9 · 3",
    ]


def test_counts_of_a_dataset_are_stored_under_the_names_of_the_model(folder, tmp_path):
    names = [f"{digit} {'abcdefghij'[digit]}" for digit in range(10)]
    model = ViTForBalancedClassification.from_pretrained(folder)
    for name, value in label_names(names).items():
        setattr(model.config, name, value)
    model.config.class_counts = None
    model.save_pretrained(tmp_path / "model")
    _processor().save_pretrained(tmp_path / "model")
    demo(tmp_path / "model", dataset="digits", export_space=tmp_path / "space", block=False)
    config = LivtConfig.from_pretrained(tmp_path / "space" / "model")
    counts = class_counts(load_long_tailed("digits"))
    assert config.ordered_class_counts() == {name: counts[name[0]] for name in names}
    examples = json.loads((tmp_path / "space" / "space.json").read_text())["examples"]
    assert examples[0][1] == f"0 a · {counts['0']}"


def test_the_exported_space_gives_the_same_answer_without_livt_hf(folder, image, tmp_path, capsys):
    space = tmp_path / "space"
    assert main(["demo", "--model", str(folder), "--dataset", "digits", "--export_space", str(space)]) == 0
    assert "livt_hf" not in (space / "requirements.txt").read_text()
    front_matter = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert (front_matter["sdk"], front_matter["app_file"]) == ("gradio", "app.py")
    assert not list(space.rglob("*.bin"))
    run = subprocess.run(
        [sys.executable, "-c", SPACE, str(space), str(image), "0.4"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    scores, table = json.loads(run.stdout.splitlines()[-1])
    classifier = demo_app.Classifier(ViTForBalancedClassification.from_pretrained(folder), _processor())
    expected, expected_table = classifier.classify(Image.open(image), 0.4)
    assert scores == pytest.approx(expected, abs=1e-6)
    assert table == expected_table


def test_user_errors_are_one_line(folder, mae, tmp_path, monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["demo", "--model", str(folder), "--port", port]) == 2
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["demo", "--model", str(folder), "--export_space", str(tmp_path)]) == 2
    assert main(["demo", "--model", str(folder), "--mae", str(mae), "--export_space", str(tmp_path / "new")]) == 2
    assert main(["demo", "--model", str(folder), "--dataset", "digits", "--split", "dev"]) == 2
    assert main(["demo", "--model", str(folder), "--port", "0"]) == 2
    assert main(["demo", "--model", str(folder), "--host", "nowhere.invalid", "--port", "7999"]) == 2
    errors = capsys.readouterr().err.splitlines()
    starts = (
        f"port: {port} cannot",
        "export_space: ",
        "mae: ",
        "split: digits has no",
        "port: 0;",
        "port: 7999 cannot be used on nowhere.invalid",
    )
    assert len(errors) == len(starts)
    for error, start in zip(errors, starts, strict=True):
        assert error.startswith(f"error: {start}")

    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "livt_hf.demo.app")
    monkeypatch.delattr("livt_hf.demo.app")
    assert main(["demo", "--model", str(folder)]) == 2
    assert capsys.readouterr().err == (
        "error: demo: gradio is not installed; install it with pip install 'livt-hf[demo]'\n"
    )


def _scores(label):
    return {entry["label"]: entry["confidence"] for entry in label["confidences"]}


def _scores_of(result):
    return {prediction["label"]: prediction["score"] for prediction in result["predictions"]}
