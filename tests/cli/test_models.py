"""The `livt` command and the models it is given: pretrained ones, and those to evaluate or to predict with."""

import shutil

import pytest
from transformers import set_seed

from helpers.cli import (
    DECODER,
    SIZES,
    run_stage,
    the_error,
    the_error_after_a_bar,
    words,
)
from helpers.images import COUNTS
from livt_hf import LivtConfig, LivtMAEForPreTraining, ViTForBalancedClassification
from livt_hf.cli import main
from livt_hf.data.transforms import image_processor
from livt_hf.models.configuration_livt import LivtMAEConfig
from livt_hf.models.modeling_livt import config_for_classes


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A saved classifier of ants and bees."""
    set_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    config = LivtConfig(**SIZES, intermediate_size=64, **config_for_classes(COUNTS))
    ViTForBalancedClassification(config).save_pretrained(folder)
    image_processor(8, 0.875, (0.5,) * 3, (0.5,) * 3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    set_seed(0)
    folder = tmp_path_factory.mktemp("autoencoder")
    config = LivtMAEConfig(**SIZES, **DECODER, intermediate_size=64, decoder_intermediate_size=64)
    LivtMAEForPreTraining(config).save_pretrained(folder)
    image_processor(8, 0.875, (0.5,) * 3, (0.5,) * 3).save_pretrained(folder)
    return folder


# Pretrained models


@pytest.mark.parametrize("pretrained", ["/no/such/folder", "no-such-organization/no-such-model"])
def test_a_pretrained_model_that_does_not_exist_is_named(capsys, tmp_path, data, pretrained):
    error = the_error(capsys, run_stage("finetune", data, tmp_path / "out", pretrained=pretrained))
    assert error.startswith(f"pretrained: '{pretrained}' cannot be loaded as a model: ")
    assert error.endswith("; give the output folder of `livt pretrain` or `livt finetune`, or a Hub id")


def test_a_folder_without_a_model_is_no_pretrained_model(capsys, tmp_path, data):
    error = the_error(capsys, run_stage("finetune", data, tmp_path / "out", pretrained=data))
    assert error.startswith(f"pretrained: '{data}' cannot be loaded as a model: the folder has no config.json; give")


def test_an_adjusted_classifier_is_no_pretrained_model(capsys, tmp_path, data, classifier):
    assert main(words("adjust", model=classifier, output_dir=tmp_path / "adjusted", temperature=2)) == 0
    capsys.readouterr()
    status = run_stage("finetune", data, tmp_path / "out", pretrained=tmp_path / "adjusted")
    assert the_error_after_a_bar(capsys, status).startswith("model: its classifier was adjusted after training")


def test_an_image_size_that_does_not_fit_the_pretrained_patches_is_named(capsys, tmp_path, data, autoencoder):
    status = run_stage("finetune", data, tmp_path / "out", pretrained=autoencoder, image_size=10)
    assert the_error(capsys, status).startswith("image_size: 10 is not divisible by patch_size 4; use image_size 8,")


# Evaluation and prediction


def evaluate(data, classifier, tmp_path, **options):
    defaults = {"model": classifier, "dataset": data, "num_workers": 0, "output_dir": tmp_path / "out"}
    return main(words("evaluate", **{**defaults, **options}))


def test_evaluating_on_a_missing_split_lists_the_splits(capsys, tmp_path, data, classifier):
    error = the_error(capsys, evaluate(data, classifier, tmp_path, split="validation"))
    assert error == f"split: {data} has no split 'validation'; choose one of train, test"


def test_class_names_that_differ_are_listed(capsys, tmp_path, data, classifier):
    for split in ("train", "test"):
        shutil.copytree(data / split / "ant", tmp_path / "data" / split / "ant")
        shutil.copytree(data / split / "bee", tmp_path / "data" / split / "wasp")
    error = the_error(capsys, evaluate(tmp_path / "data", classifier, tmp_path))
    assert error == (
        "the dataset: the model does not know 1 of its classes: wasp; the model's classes without counterpart: bee"
    )
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_evaluated_are_named(capsys, tmp_path, data, autoencoder, classifier):
    def error(**options):
        return the_error(capsys, evaluate(data, classifier, tmp_path, **options))

    no_classifier, no_autoencoder = (
        f"cannot be loaded as {kind}" for kind in ("an image classifier", "a masked autoencoder")
    )
    assert error(model="/no/such").startswith(f"model: '/no/such' {no_classifier}: there is no such folder; give")
    assert error(model=data).startswith(f"model: '{data}' {no_classifier}: the folder has no config.json; give")
    assert error(model=autoencoder).startswith(f"model: '{autoencoder}' {no_classifier}: it is a 'vit_mae' model; give")
    assert error(mae=classifier).startswith(f"mae: '{classifier}' {no_autoencoder}: it is a 'beit' model; give")
    assert error(mae="/no/such").startswith(f"mae: '/no/such' {no_autoencoder}: there is no such folder; give")


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"batch_size": 0}, "batch_size: "),
        ({"batch_size": "two"}, "argument --batch_size: invalid int value: 'two'"),
        ({"num_workers": -1}, "num_workers: "),
        ({"device": "nonsense"}, "device: 'nonsense'"),
    ],
)
def test_evaluation_settings_that_cannot_be_are_named(capsys, tmp_path, data, classifier, options, start):
    assert the_error(capsys, evaluate(data, classifier, tmp_path, **options)).startswith(start)


def test_a_device_that_is_not_there_is_named(capsys, tmp_path, data, classifier):
    assert the_error(capsys, evaluate(data, classifier, tmp_path, device="cuda:7")).startswith("device: 'cuda:7'")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_test_image_is_an_error_that_names_it(capsys, tmp_path, data, classifier, num_workers):
    shutil.copytree(data, tmp_path / "data")
    file = tmp_path / "data" / "test" / "bee" / "0.jpg"
    file.write_bytes(file.read_bytes()[:200])
    argv = words("evaluate", model=classifier, dataset=tmp_path / "data", num_workers=num_workers)
    error = the_error(capsys, main([*argv, "--output_dir", str(tmp_path / "out")]))
    assert error.startswith(f"{file}: cannot be decoded (")


def test_prediction_goes_on_after_a_bad_file_and_says_which_it_was(capsys, tmp_path, data, classifier):
    image, missing, text = data / "test" / "ant" / "0.jpg", tmp_path / "no.jpg", tmp_path / "text.jpg"
    text.write_text("no image")
    assert main(words("predict", missing, image, text, model=classifier, device="cpu")) == 1
    output = capsys.readouterr()
    assert output.err == f"error: {missing}: no such file\nerror: {text}: not an image\n"
    lines = output.out.splitlines()
    assert lines[0] == str(image)
    assert sorted(line.split()[-1] for line in lines[1:]) == ["ant", "bee"]
    assert sum(float(line.split()[0]) for line in lines[1:]) == pytest.approx(100, abs=0.02)


def test_prediction_settings_that_cannot_be_are_named(capsys, data, classifier):
    image = data / "test" / "ant" / "0.jpg"
    error = the_error(capsys, main(words("predict", image, model="/no/such")))
    assert error.startswith("model: '/no/such' cannot be loaded as an image classifier: there is no such folder; give")
    status = main(words("predict", image, model=classifier, top_k=0))
    assert the_error(capsys, status) == "top_k: 0; at least 1 is needed"
    status = main(words("predict", image, model=classifier, device="nonsense"))
    assert the_error(capsys, status).startswith("device: 'nonsense'")
