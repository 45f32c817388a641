"""`livt adjust`: closed forms of the logits, the minimum of the likelihood, exact undo."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    BeitImageProcessor,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from livt_hf import ClassPrior, LivtConfig, ViTForBalancedClassification
from livt_hf.class_names import label_names
from livt_hf.cli import main
from livt_hf.data import load_long_tailed
from livt_hf.evaluation.adjust import (
    ORIGINAL_LAYER,
    adjust,
    fit_temperature,
    image_weights,
    negative_log_likelihood,
    undo,
)
from livt_hf.evaluation.predict import predict_images
from livt_hf.evaluation.prior_shift import long_tailed_priors, target_prior
from livt_hf.models.loading import classifier_layer

pytestmark = pytest.mark.usefixtures("unrendered")

COUNTS = {"ant": 60, "bee": 30, "cat": 10}
PI = np.array([0.6, 0.3, 0.1])
SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
NATIVE = """
import json, sys
sys.modules["livt_hf"] = None
from transformers import pipeline
print(json.dumps(pipeline("image-classification", sys.argv[1])(sys.argv[2:], top_k=None)))
"""


def save_model(path, loss="ce", tau=1.0, **changed):
    torch.manual_seed(0)
    config = LivtConfig(
        **{**SIZES, "image_size": 16, "patch_size": 4, "class_counts": COUNTS, **label_names(list(COUNTS)), **changed},
        loss=loss,
        tau=tau,
    )
    return save(ViTForBalancedClassification(config), path)


def save(model, path):
    """Save a model whose classifier is no longer the small one that it starts with."""
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer.out_features == 3:
            torch.nn.init.normal_(layer.weight, std=1.0)
            torch.nn.init.normal_(layer.bias, std=1.0)
    model.save_pretrained(path)
    size = {"height": 16, "width": 16}
    BeitImageProcessor(size=size, do_center_crop=False, do_convert_rgb=True).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "ce")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of three classes that differ in their mean gray, not by much."""
    path = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, count in {"ant": 6, "bee": 3, "cat": 1}.items():
        for split, number in (("train", count), ("validation", 8 if name == "cat" else 4), ("test", 12)):
            (path / split / name).mkdir(parents=True)
            for index in range(number):
                gray = rng.normal(60 + 60 * list(COUNTS).index(name), 25)
                pixels = rng.normal(gray, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(path / split / name / f"{index}.png")
    return path


def logits(folder):
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    pixel_values = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(pixel_values).logits.double().numpy()


@pytest.mark.parametrize(
    ("loss", "tau", "target", "shift"),
    [
        ("ce", 1.0, "uniform", -np.log(PI)),
        ("ce", 1.0, "train", 0 * PI),
        ("bal_bce", 1.0, "uniform", 0 * PI),
        ("bal_bce", 1.0, "train", np.log(PI)),
        ("bal_ce", 0.5, "uniform", -0.5 * np.log(PI)),
    ],
)
def test_logits_shift_by_the_log_ratio_of_the_priors(tmp_path, loss, tau, target, shift):
    save_model(tmp_path / "before", loss, tau)
    adjust(tmp_path / "before", tmp_path / "after", target=target)
    moved = logits(tmp_path / "after") - logits(tmp_path / "before")
    np.testing.assert_allclose(moved - moved.mean(1, keepdims=True), [shift - shift.mean()] * 5, atol=2e-6)


def test_a_target_from_a_file_is_matched_by_name_and_the_shift_is_not_divided_by_the_temperature(tmp_path, folder):
    (tmp_path / "shares.json").write_text('{"cat": 80, "ant": 10, "bee": 10}')
    shares = str(tmp_path / "shares.json")
    adjusted = adjust(folder, tmp_path / "out", target=shares, temperature=2.0)
    assert adjusted["target_prior"] == {"cat": 80, "ant": 10, "bee": 10}
    moved = logits(tmp_path / "out") - (logits(folder) / 2.0 + np.log([0.1, 0.1, 0.8]) - np.log(PI))
    np.testing.assert_allclose(moved - moved.mean(1, keepdims=True), 0, atol=2e-6)


def test_tau_norm_divides_each_row_by_a_power_of_its_norm(tmp_path, folder):
    adjust(folder, tmp_path / "out", tau_norm=0.7)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    norms = before["classifier.weight"].norm(dim=1, keepdim=True)
    torch.testing.assert_close(after["classifier.weight"], before["classifier.weight"] / norms**0.7)
    assert after["classifier.bias"].tolist() == [0, 0, 0]


def test_the_fitted_temperature_is_the_minimum_of_the_likelihood():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(true.softmax(1), 1, generator=generator)[:, 0]
    shift = np.zeros(3)
    fitted = fit_temperature(3.0 * true, labels, shift)
    assert fitted == pytest.approx(3.0, rel=0.06)  # the logits were made too large by 3
    nll = [negative_log_likelihood(3.0 * true, labels, 1 / t, shift)[0] for t in (fitted * 0.99, fitted, fitted * 1.01)]
    assert nll[1] == min(nll)
    assert nll[1] == pytest.approx(torch.nn.functional.cross_entropy(3.0 * true / fitted, labels).item(), rel=1e-12)


def test_weighting_images_equals_repeating_them():
    generator = torch.Generator().manual_seed(0)
    z, shift = torch.randn(6, 3, generator=generator), np.array([0.3, 0.0, -1.0])
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    weights = image_weights(labels, np.array([0.5, 0.25, 0.25]))
    np.testing.assert_allclose(weights, [1 / 6] * 3 + [1 / 4, 1 / 8, 1 / 8])
    repeated = torch.tensor([0, 1, 2] * 4 + [3] * 6 + [4, 5] * 3)  # 12 : 6 : 6
    weighted = negative_log_likelihood(z, labels, 0.8, shift, weights)
    assert weighted == pytest.approx(negative_log_likelihood(z[repeated], labels[repeated], 0.8, shift))


def test_a_likelihood_without_minimum_is_an_error():
    right, wrong = torch.arange(4), torch.arange(4).roll(1)
    with pytest.raises(
        ValueError, match=r"the likelihood of 4 images still grows at 0\.01: all predictions are correct;"
    ):
        fit_temperature(torch.eye(4), right, np.zeros(4))
    with pytest.raises(
        ValueError, match=r"still grows at 100: the predictions are no better than chance; train longer"
    ):
        fit_temperature(torch.eye(4), wrong, np.zeros(4))


def test_plain_transformers_gives_the_adjusted_probabilities_and_undo_the_weights(tmp_path, folder, images, capsys):
    """End to end, as a command, with a fitted temperature."""
    adjusted, restored = tmp_path / "adjusted", tmp_path / "restored"
    folder = learn(folder, images, tmp_path / "learned")
    fit = ["adjust", "--target_prior=uniform", "--temperature=fit", f"--dataset={images}", "--num_workers=0"]
    fit += [f"--model={folder}"]
    assert main([*fit, f"--output_dir={adjusted}"]) == 0
    assert "can no longer measure" not in capsys.readouterr().out
    settings = json.loads((adjusted / "config.json").read_text())["adjustment"]
    assert settings["target_prior"] == "uniform"

    files = sorted(str(file) for file in images.glob("validation/*/*.png"))
    labels = [list(COUNTS).index(file.split("/")[-2]) for file in files]
    before, after = ([scores(result) for result in predict_images(path, files)] for path in (folder, adjusted))
    expected = torch.tensor(before).double().log() / settings["temperature"] - torch.from_numpy(np.log(PI))
    np.testing.assert_allclose(after, expected.softmax(1), atol=2e-6)
    # classes have equal weights in the fit, although one has twice as many images
    likelihoods = []
    for temperature in (0.98, 1.0, 1.02):
        z = torch.tensor(before).double().log() / (settings["temperature"] * temperature) - torch.from_numpy(np.log(PI))
        own = z.log_softmax(1)[torch.arange(len(files)), labels]
        likelihoods.append(np.mean([own[np.array(labels) == label].mean() for label in range(3)]))
    assert likelihoods[1] == max(likelihoods)

    command = [sys.executable, "-c", NATIVE, str(adjusted), *files[:3]]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    native = [scores({"predictions": result}) for result in json.loads(run.stdout.splitlines()[-1])]
    np.testing.assert_allclose(native, after[:3], atol=1e-6)

    assert main([*fit, "--split=test", f"--output_dir={tmp_path / 'leaked'}"]) == 0
    assert "the test split, which can no longer measure the copy's calibration" in capsys.readouterr().out

    assert main(["adjust", "--undo", "--model", str(adjusted), "--output_dir", str(restored)]) == 0
    assert (restored / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert "adjustment" not in json.loads((restored / "config.json").read_text())
    assert not (restored / ORIGINAL_LAYER).exists()


def learn(folder, images, path):
    """A model better than chance, but not perfect."""
    model = ViTForBalancedClassification.from_pretrained(folder)
    processor = BeitImageProcessor.from_pretrained(folder)
    rows = load_long_tailed(images)["test"]
    pixel_values = processor([Image.open(row["path"]) for row in rows["image"]], return_tensors="pt").pixel_values
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(pixel_values, labels=torch.tensor(rows["label"])).loss.backward()
        optimizer.step()
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def scores(result):
    """Probabilities in label order."""
    of_class = {prediction["label"]: prediction["score"] for prediction in result["predictions"]}
    return [of_class[name] for name in COUNTS]


def test_the_copy_has_a_card_which_gets_the_results_of_an_evaluation(tmp_path, images, folder, capsys):
    adjusted, card = tmp_path / "calibrated", tmp_path / "calibrated" / "README.md"
    adjust(folder, adjusted, temperature=2)
    text = card.read_text(encoding="utf-8")
    assert "# calibrated\n" in text
    assert "This model has not been evaluated: its accuracy is unknown." in text
    assert "100 training images in 3 classes, from 60 images in the largest class to 10" in text
    assert "- Adjusted post hoc with `livt adjust`: temperature 2.\n" in text

    evaluate = ["evaluate", f"--dataset={images}", "--num_workers=0", "--device=cpu", f"--model={adjusted}"]
    assert main(evaluate) == 0
    evaluated = card.read_text(encoding="utf-8")
    assert "has not been evaluated" not in evaluated
    assert f"On 36 images of {images.name}" in evaluated
    assert "- Adjusted post hoc with `livt adjust`: temperature 2.\n" in evaluated

    card.write_text("my own words")
    assert main(evaluate) == 0
    assert card.read_text() == "my own words"

    undo(adjusted, tmp_path / "original")
    restored = (tmp_path / "original" / "README.md").read_text(encoding="utf-8")
    assert "This model has not been evaluated" in restored
    assert "- Adjusted post hoc" not in restored


def test_labels_for_an_adjusted_model_are_an_error(tmp_path, folder):
    adjust(folder, tmp_path / "out", temperature=2)
    model = ViTForBalancedClassification.from_pretrained(tmp_path / "out")
    assert model(torch.zeros(1, 3, 16, 16)).logits.shape == (1, 3)
    with pytest.raises(ValueError, match="adjusted after training and cannot be trained further"):
        model(torch.zeros(1, 3, 16, 16), labels=torch.tensor([0]))


@pytest.mark.parametrize("kind", ["dinov2", "resnet"])
def test_other_models_with_a_linear_classifier_take_the_counts_of_the_data(tmp_path, images, kind):
    names = label_names(list(COUNTS))
    torch.manual_seed(0)
    if kind == "dinov2":
        sizes = {"hidden_size": 3, "num_hidden_layers": 1, "num_attention_heads": 1}  # as wide as there are classes
        model = Dinov2ForImageClassification(Dinov2Config(**sizes, image_size=16, patch_size=4, **names))
    else:
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}
        model = ResNetForImageClassification(ResNetConfig(**sizes, **names))
    save(model, tmp_path / "model")
    with pytest.raises(ValueError, match="has no class counts; name its training dataset"):
        adjust(tmp_path / "model", tmp_path / "out", target="uniform")
    adjust(tmp_path / "model", tmp_path / "out", target="uniform", dataset=images)
    moved = logits(tmp_path / "out") - logits(tmp_path / "model")
    np.testing.assert_allclose(moved, [np.log(1 / 3 / PI)] * 5, atol=2e-6)
    undo(tmp_path / "out", tmp_path / "back")
    np.testing.assert_array_equal(logits(tmp_path / "back"), logits(tmp_path / "model"))


def test_a_mean_of_two_classifiers_is_an_error(tmp_path):
    config = DeiTConfig(**SIZES, image_size=16, patch_size=4, num_labels=3)
    model = DeiTForImageClassificationWithTeacher(config)
    with pytest.raises(ValueError, match="are not the output of one linear layer"):
        classifier_layer(model, BeitImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "adjust: nothing to do; give --target_prior"),
        (["--target_prior=unifrom"], "target_prior: 'unifrom' is neither uniform nor train nor a readable file"),
        (["--target_prior=FILE", "--tau_norm=1"], "tau_norm: cannot be combined with --target_prior"),
        (
            ["--target_prior=FILE"],
            "class names of the model and target_prior differ; only in the model: 'bee'",
        ),
        (["--temperature=hot"], "temperature: 'hot'; give fit or a number above 0"),
        (["--temperature=-1"], "temperature: '-1'; give fit or a number above 0"),
        (["--temperature=fit"], "temperature: fit needs images with labels; name the dataset with --dataset"),
        (["--tau_norm=nan"], "tau_norm: nan; give a finite number"),
        (["--undo", "--tau_norm=1"], "undo: it takes no --tau_norm"),
        (["--undo"], "model: 'MODEL' is not adjusted; there is nothing to undo"),
        (["--tau_norm=1", "--output_dir=MODEL"], "output_dir: 'MODEL' is not empty; name a new folder"),
        (
            ["--tau_norm=1", "--model=/no/such"],
            "model: '/no/such' cannot be loaded as an image classifier: there is no such folder; give",
        ),
    ],
)
def test_invalid_adjustments_are_errors_of_one_line(tmp_path, folder, capsys, options, message):
    (tmp_path / "shares.json").write_text('{"ant": 1, "bat": 2, "cat": 3}')
    options = [word.replace("FILE", str(tmp_path / "shares.json")).replace("MODEL", str(folder)) for word in options]
    status = main(["adjust", f"--model={folder}", f"--output_dir={tmp_path / 'out'}", *options])
    error = capsys.readouterr().err
    line = next(line for line in error.splitlines() if line.startswith("error: "))
    assert line.startswith("error: " + message.replace("MODEL", str(folder)))
    assert "Traceback" not in error
    assert status == 2
    assert not (tmp_path / "out").exists()


def test_invalid_targets_models_and_datasets(tmp_path, folder, images):
    prior = ClassPrior(COUNTS)
    with pytest.raises(ValueError, match="class 'bee' has the value 0; it must be a number above 0"):
        target_prior({"ant": 1, "bee": 0, "cat": 1}, prior)
    for text, message in (("[1, 2]", "must contain {class name: probability or count}"), ("{", "is not valid JSON")):
        (tmp_path / "file.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            target_prior(str(tmp_path / "file.json"), prior)
    without = DatasetDict(train=load_long_tailed(images)["train"])
    with pytest.raises(ValueError, match="has no images in a split 'validation' to fit on"):
        adjust(folder, tmp_path / "out", temperature="fit", dataset=without)
    adjust(folder, tmp_path / "out", temperature=2)
    with pytest.raises(ValueError, match="is adjusted already; adjust the original, or --undo this one first"):
        adjust(tmp_path / "out", tmp_path / "twice", temperature=2)
    (tmp_path / "out" / ORIGINAL_LAYER).unlink()
    with pytest.raises(ValueError, match="which holds the original weights; give the folder that"):
        undo(tmp_path / "out", tmp_path / "back")


def test_evaluate_reports_them_and_the_shift_is_that_of_an_adjusted_model(tmp_path, images, capsys):
    """Evaluating with the shift to a distribution is evaluating the model adjusted to it."""
    save_model(tmp_path / "model", "bal_ce", 0.5)
    evaluate = ["evaluate", f"--dataset={images}", "--num_workers=0", "--device=cpu"]
    first = [*evaluate, f"--model={tmp_path / 'model'}", f"--output_dir={tmp_path / 'first'}", "--test_prior"]
    assert main(first) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "first" / "results.json").read_text())
    report = (tmp_path / "first" / "report.md").read_text()
    assert len(results["test_prior"]) == 11
    assert results["test_prior"]["uniform"]["accuracy"] == pytest.approx(results["accuracy"])  # a balanced test set
    values = results["test_prior"]["backward 50"]
    assert f"| backward 50 | {values['accuracy']:.1f} | {values['shifted']:.1f} |" in report
    assert f"prior-corrected {values['shifted']:>5.1f} %" in printed

    shares = dict(zip(COUNTS, long_tailed_priors(ClassPrior(COUNTS))["backward 50"].tolist(), strict=True))
    (tmp_path / "shares.json").write_text(json.dumps(shares))
    adjust(tmp_path / "model", tmp_path / "adjusted", target=str(tmp_path / "shares.json"))
    second = [*evaluate, f"--model={tmp_path / 'adjusted'}", f"--output_dir={tmp_path / 'second'}", "--test_prior"]
    assert main(second) == 0
    adjusted = json.loads((tmp_path / "second" / "results.json").read_text())
    assert adjusted["test_prior"]["backward 50"]["accuracy"] == pytest.approx(values["shifted"])
    assert adjusted["test_prior"]["backward 50"]["shifted"] == pytest.approx(values["shifted"])
    forward = [of["test_prior"]["forward 50"]["shifted"] for of in (results, adjusted)]
    assert forward[0] == pytest.approx(forward[1])
    assert "Adjusted post hoc: target prior from a file." in (tmp_path / "second" / "report.md").read_text()
