"""The `livt` command: whatever is wrong with its input ends in one line that says what to mend."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features, Image
from transformers import set_seed

from livt_hf import LivtConfig, LivtMAEForPreTraining, ViTForBalancedClassification, __version__
from livt_hf.cli import COMMANDS, main
from livt_hf.configuration_livt import LivtMAEConfig
from livt_hf.data.transforms import image_processor
from livt_hf.modeling_livt import config_for_classes

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
TRAINING = {**SIZES, "batch_size": 4, "max_steps": 1, "num_workers": 0}
STAGE = {"pretrain": {**TRAINING, **DECODER}, "finetune": {**TRAINING, "rand_augment": "none"}}
COUNTS = {"ant": 5, "bee": 3}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # read at import
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module", autouse=True)
def _quick_end_of_workers():
    """torch waits 5 seconds for the workers of a loader that is left in the middle, before it ends them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with 8 training images of 2 classes and one test image of each; no validation split."""
    folder = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0)
    for name, count in COUNTS.items():
        for split, number in (("train", count), ("test", 1)):
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                image = PIL.Image.fromarray(pixels.integers(0, 256, (12, 10, 3), dtype=np.uint8))
                image.save(folder / split / name / f"{index}.jpg")
    return folder


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


def words(*argv, **options):
    """A command line; lists and ``None`` (no such option) are understood."""
    line = [str(word) for word in argv]
    for name, value in options.items():
        if value is not None:
            line += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return line


def run_stage(stage, data, output_dir, **options):
    return main(words(stage, **{**STAGE[stage], "dataset": data, "output_dir": output_dir, **options}))


def the_error(capsys, status):
    """The one line on stderr, without its "error: "; nothing else may be there."""
    text = capsys.readouterr().err
    assert status == 2
    assert text.startswith("error: ")
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text[len("error: ") : -1]


def the_error_after_a_bar(capsys, status):
    """As `the_error`, but where progress was shown before: on a line of its own, the last one."""
    text = capsys.readouterr().err
    assert status == 2
    assert "Traceback" not in text
    lines = text.split("\n")
    assert lines[-1] == ""
    assert [line for line in lines if "error: " in line] == [lines[-2]], text
    assert lines[-2].startswith("error: "), text
    return lines[-2][len("error: ") :]


# Commands


def test_without_a_command_all_are_listed(capsys):
    for argv in ([], ["--help"], ["-h"]):
        assert main(argv) == 0
        text = capsys.readouterr().out
        listed = [line.split()[0] for line in text.split("commands:\n")[1].split("\n\n")[0].splitlines()]
        assert listed == list(COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"livt_hf {__version__}\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("pretian", "livt: unknown command 'pretian'; did you mean 'pretrain'?"),
        ("fine-tune", "livt: unknown command 'fine-tune'; did you mean 'finetune'?"),
        ("zzz", "livt: unknown command 'zzz'; known: " + ", ".join(COMMANDS)),
    ],
)
def test_unknown_commands_are_named(capsys, command, message):
    assert the_error(capsys, main([command])) == message


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_suggests_the_nearest_option(capsys, command):
    required = {
        "quickstart": "output_dir",
        "pretrain": "dataset",
        "finetune": "dataset",
        "compare": "dataset",
        "dataset": "dataset",
        "convert": "labels",
    }.get(command, "model")
    argv = [command, f"--{required}", "x", f"--{required[:-1]}=y"]
    argv += {
        "evaluate": ["--dataset", "x"],
        "compare": ["--losses", "ce", "--output_dir", "x"],
        "predict": ["image.png"],
        "adjust": ["--output_dir", "x"],
        "push": ["--hub_model_id", "org/x"],
        "dataset": ["inspect"],
        "convert": ["--source", "mae", "in.pth", "out"],
        "export": ["--format", "timm", "--output_dir", "x"],
    }.get(command, [])
    error = the_error(capsys, main(argv))
    assert f"--{required[:-1]}" in error
    assert f"did you mean '{required}'" in error.replace("'--", "'")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["quickstart"], "the following arguments are required: --output_dir (see `livt quickstart --help`)"),
        (["evaluate", "--dataset", "d"], "the following arguments are required: --model (see `livt evaluate --help`)"),
        (["predict", "--model", "m"], "the following arguments are required: IMAGE (see `livt predict --help`)"),
        (["pretrain", "--output_dir", "o"], "dataset: none was given; name one with --dataset or a --recipe"),
        (["finetune", "--dataset", "digits"], "output_dir: none was given; name one with --output_dir"),
        (["finetune", "--recipe", "digit"], "recipe: 'digit' is unknown; did you mean 'digits'? known: "),
    ],
)
def test_what_is_missing_is_asked_for(capsys, argv, message):
    assert the_error(capsys, main(argv)).startswith(message)


# Data


@pytest.mark.parametrize("stage", STAGE)
def test_bad_folders_are_named(capsys, tmp_path, data, stage):
    output = tmp_path / "out"

    def error(folder):
        return the_error(capsys, run_stage(stage, folder, output))

    missing = tmp_path / "missing"
    assert error(missing).startswith(f"--dataset {missing}: neither an existing folder nor a known name; give an exi")
    assert error("digit").endswith("did you mean 'digits'?")
    file = data / "train" / "ant" / "0.jpg"
    assert error(file).startswith(f"--dataset {file}: is a file; give the folder that holds the images")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert error(empty).startswith(f"{empty}: no images found; expected {empty}/train/CLASS/*.jpg")
    (empty / "notes").mkdir()
    (empty / "notes" / "read.txt").write_text("no image")
    assert error(empty) == f"{empty}: class folders without images: notes; add images or remove the folders"
    partly = tmp_path / "partly"
    shutil.copytree(data, partly)
    (partly / "train" / "cat").mkdir()
    assert error(partly) == f"{partly}/train: class folders without images: cat; add images or remove the folders"
    (partly / "train" / "cat").rmdir()
    (partly / "test" / "dog").mkdir()
    assert error(partly).startswith(f"{partly}/test: 1 class folders are not among the training classes: dog;")
    assert not output.exists()


@pytest.mark.parametrize("stage", STAGE)
def test_labels_out_of_range_name_their_row(capsys, tmp_path, data, stage):
    image = {"bytes": (data / "train" / "ant" / "0.jpg").read_bytes(), "path": None}
    schema = Features({"image": Image(), "label": ClassLabel(names=["ant", "bee"])}).arrow_schema
    pq.write_table(pa.table({"image": [image] * 3, "label": [0, 1, 2]}, schema=schema), tmp_path / "train-0.parquet")
    error = the_error(capsys, run_stage(stage, tmp_path, tmp_path / "out"))
    assert error.startswith(f"{tmp_path}: label 2 of train row 2 is not one of the 2 classes (0 to 1; 1 such rows)")


def test_one_class_is_too_few_for_a_classifier(capsys, tmp_path, data):
    shutil.copytree(data / "train" / "ant", tmp_path / "train" / "ant")
    error = the_error(capsys, run_stage("finetune", tmp_path, tmp_path / "out"))
    assert error == "class_counts: a class prior needs at least 2 classes, got ['ant']"


@pytest.mark.parametrize("stage", STAGE)
def test_a_batch_larger_than_the_data_is_named(capsys, tmp_path, data, stage):
    error = the_error(capsys, run_stage(stage, data, tmp_path / "out", batch_size=6, gradient_accumulation_steps=2))
    assert error == (
        "a batch of 12 images (batch size 6 x 2 accumulation steps x 1 processes) is larger than the 8 training "
        "images; lower --batch_size"
    )


def test_mixup_needs_an_even_batch(capsys, tmp_path, data):
    error = the_error(capsys, run_stage("finetune", data, tmp_path / "out", batch_size=3))
    assert error == "batch_size: 3 is odd, and mixup mixes neighbours; use an even one"


@pytest.mark.parametrize("stage", STAGE)
def test_an_output_folder_that_is_a_file_is_named(capsys, tmp_path, data, stage):
    file = tmp_path / "out"
    file.write_text("mine")
    assert the_error(capsys, run_stage(stage, data, file)).startswith(f"output_dir: '{file}'")
    error = the_error(capsys, run_stage(stage, data, file / "below"))
    assert error == f"output_dir: '{file / 'below'}' cannot be made, {file} is a file; name another folder"
    assert file.read_text() == "mine"


# Options that do not fit together


@pytest.mark.parametrize("stage", STAGE)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 10}, "image_size: 10 is not divisible by patch_size 4; use image_size 8, for instance"),
        ({"image_size": 3}, "image_size: 3 is not divisible by patch_size 4; use image_size 4, for instance"),
        ({"hidden_size": 18}, "hidden_size: 18 must be divisible by num_attention_heads 2 and,"),
        ({"hidden_size": 20, "num_attention_heads": 3}, "hidden_size: 20 must be divisible by num_attention_heads 3"),
        ({"imbalance_factor": 9}, "imbalance_factor=9.0 leaves the smallest class without an image"),
        ({"imbalance_factor": 0.5}, "imbalance_factor=0.5 must be at least 1"),
        ({"horizontal_flip": 2}, "horizontal_flip=2.0 must lie between 0 and 1"),
        ({"min_crop_scale": -1}, "min_crop_scale=-1.0 must lie between 0 and 1"),
        ({"resume": "nope"}, "resume: 'nope' is not a complete checkpoint: there is no such folder;"),
    ],
)
def test_settings_that_cannot_be_are_named(capsys, tmp_path, data, stage, options, message):
    assert the_error(capsys, run_stage(stage, data, tmp_path / "out", **options)).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1}, "mask_ratio: 1.0 leaves 0 of 4 patches visible"),
        ({"decoder_hidden_size": 18}, "decoder_hidden_size: 18 must be divisible by"),
        ({"decoder_num_attention_heads": 3}, "decoder_hidden_size: 16 must be divisible by"),
    ],
)
def test_pretraining_settings_that_cannot_be_are_named(capsys, tmp_path, data, options, message):
    assert the_error(capsys, run_stage("pretrain", data, tmp_path / "out", **options)).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "bal_bc"}, "loss: 'bal_bc' is unknown; did you mean 'bal_bce'? known: ce, bce, bal_ce, bal_bce"),
        ({"rand_augment": "rnd"}, "rand_augment='rnd' is not a description like 'rand-m9-mstd0.5-inc1'"),
        ({"random_erasing": 3}, "random_erasing=3.0 must lie between 0 and 1"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"mixup": -1}, "mixup"),
        ({"tau": "nan"}, "tau: "),
        # Not after the training, which would be lost.
        ({"many": 5, "few": 9}, "groups: few=9 must be at most many + 1 = 6, or the groups overlap"),
        ({"group_by": "rank", "many": 2, "few": 1}, "groups: many + few = 3 is more than the 2 classes"),
        ({"crop_ratio": 0}, "crop_ratio: "),
    ],
)
def test_finetuning_settings_that_cannot_be_are_named(capsys, tmp_path, data, options, message):
    assert the_error(capsys, run_stage("finetune", data, tmp_path / "out", **options)).startswith(message)
    assert not (tmp_path / "out").exists()


def test_a_reporter_that_is_not_installed_is_named(capsys, tmp_path, data, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    error = the_error(capsys, run_stage("finetune", data, tmp_path / "out", report_to="wandb"))
    assert error.startswith("report_to: ")


# Pretrained models


@pytest.mark.parametrize("pretrained", ["/no/such/folder", "no-such-organisation/no-such-model"])
def test_a_pretrained_model_that_does_not_exist_is_named(capsys, tmp_path, data, pretrained):
    error = the_error(capsys, run_stage("finetune", data, tmp_path / "out", pretrained=pretrained))
    assert error.startswith(f"pretrained: '{pretrained}' is neither a folder with a model nor one on the Hub (")
    assert error.endswith("); give the output folder of `livt pretrain`, an image classifier, a Hub id, or none")


def test_a_folder_without_a_model_is_no_pretrained_model(capsys, tmp_path, data):
    error = the_error(capsys, run_stage("finetune", data, tmp_path / "out", pretrained=data))
    assert error.startswith(f"pretrained: '{data}' is neither a folder with a model nor one on the Hub (")


def test_an_adjusted_classifier_is_no_pretrained_model(capsys, tmp_path, data, classifier):
    assert main(words("adjust", model=classifier, output_dir=tmp_path / "adjusted", temperature=2)) == 0
    capsys.readouterr()
    status = run_stage("finetune", data, tmp_path / "out", pretrained=tmp_path / "adjusted")
    assert the_error_after_a_bar(capsys, status).startswith("model: its classifier was adjusted after the training")


def test_an_image_size_that_does_not_fit_the_pretrained_patches_is_named(capsys, tmp_path, data, autoencoder):
    status = run_stage("finetune", data, tmp_path / "out", pretrained=autoencoder, image_size=10)
    assert the_error(capsys, status).startswith("image_size: 10 is not divisible by patch_size 4; use image_size 8,")


# Output folders of other runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """Output folders of both stages, each finished after 2 steps, with a checkpoint at step 1."""
    folder = tmp_path_factory.mktemp("runs")
    for stage in STAGE:
        assert run_stage(stage, data, folder / stage, max_steps=2, save_every=1) == 0
    return folder


@pytest.mark.parametrize("stage", STAGE)
def test_a_run_of_another_shape_is_not_continued(capsys, tmp_path, runs, data, stage):
    shutil.copytree(runs / stage, tmp_path / "out")
    capsys.readouterr()
    error = the_error(capsys, run_stage(stage, data, tmp_path / "out", max_steps=2, save_every=1, hidden_size=32))
    assert error.startswith(f"output_dir: '{tmp_path / 'out'}'")
    assert "hidden_size: 16 -> 32" in error


def test_a_finished_run_is_not_passed_off_as_one_with_another_loss(capsys, tmp_path, runs, data):
    """Its last checkpoint is its end: nothing would be trained with the other loss."""
    shutil.copytree(runs / "finetune", tmp_path / "out")
    capsys.readouterr()
    error = the_error(capsys, run_stage("finetune", data, tmp_path / "out", max_steps=2, save_every=1, loss="ce"))
    assert error.startswith(f"output_dir: '{tmp_path / 'out'}'")
    assert "loss: bal_bce -> ce" in error
    assert json.loads((tmp_path / "out" / "config.json").read_text())["loss"] == "bal_bce"


def test_a_masked_autoencoder_is_told_from_a_classifier(capsys, tmp_path, runs, data):
    for words, message in (
        (["--model", str(runs / "pretrain")], "it is a masked autoencoder; fine-tune it first"),
        (["--model", str(runs / "finetune"), "--mae", str(runs / "finetune")], "it is another model; name the output"),
    ):
        options = ["--dataset", str(data), "--output_dir", str(tmp_path), *words]
        assert message in the_error(capsys, main(["evaluate", *options]))


@pytest.mark.parametrize(("stage", "other"), [("pretrain", "finetune"), ("finetune", "pretrain")])
def test_a_checkpoint_of_the_other_stage_is_not_continued(capsys, tmp_path, runs, data, stage, other):
    shutil.copytree(runs / other, tmp_path / "out")
    capsys.readouterr()
    assert str(tmp_path / "out") in the_error(capsys, run_stage(stage, data, tmp_path / "out"))
    checkpoint = sorted((runs / other).glob("checkpoint-*"))[0]
    status = run_stage(stage, data, tmp_path / "new", resume=checkpoint)
    assert str(checkpoint) in the_error(capsys, status)


@pytest.mark.parametrize("stage", STAGE)
def test_the_same_command_again_changes_nothing(capsys, tmp_path, runs, data, stage):
    shutil.copytree(runs / stage, tmp_path / "out")
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    capsys.readouterr()
    assert run_stage(stage, data, tmp_path / "out", max_steps=2, save_every=1) == 0
    assert "holds this run, finished after 2 steps; nothing to do" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()} == before


def test_quickstart_leaves_other_folders_alone(capsys, tmp_path):
    def error():
        return the_error(capsys, main(["quickstart", "--output_dir", str(tmp_path / "out")]))

    (tmp_path / "out").write_text("a file")
    assert error().startswith(f"output_dir: '{tmp_path / 'out'}'")
    (tmp_path / "out").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert error() == f"output_dir: '{tmp_path / 'out'}' is not empty; name a new folder"
    (tmp_path / "out" / "results.json").write_text("[]")
    assert error().startswith(f"output_dir: '{tmp_path / 'out'}' holds a finished quickstart; name a new folder")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["notes.txt", "results.json"]


# Images that cannot be read


@pytest.fixture(scope="module")
def truncated(tmp_path_factory, data):
    """The data with one training JPEG cut in half; the folder and the file."""
    folder = tmp_path_factory.mktemp("truncated") / "data"
    shutil.copytree(data, folder)
    file = folder / "train" / "ant" / "1.jpg"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return folder, file


@pytest.mark.parametrize("stage", STAGE)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_truncated_jpeg_is_replaced_and_named_in_the_log(tmp_path, truncated, stage, num_workers):
    """Two steps of four read all eight images."""
    folder, file = truncated
    assert run_stage(stage, folder, tmp_path, max_steps=2, num_workers=num_workers, max_bad_images=1) == 0
    log = (tmp_path / "bad_images.log").read_text().splitlines()
    assert len(log) == 1
    assert log[0].startswith(f"{file}: cannot be decoded (")


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("stage", STAGE)
def test_more_bad_images_than_allowed_stop_the_run_with_one_line(capsys, tmp_path, truncated, stage, num_workers):
    folder, file = truncated
    status = run_stage(stage, folder, tmp_path, max_steps=2, num_workers=num_workers, max_bad_images=0)
    assert the_error_after_a_bar(capsys, status) == (
        f"1 training images cannot be read, more than --max_bad_images 0; see {tmp_path / 'bad_images.log'}; repair "
        "them or raise the limit"
    )
    assert (tmp_path / "bad_images.log").read_text().startswith(f"{file}: cannot be decoded (")


def test_images_of_every_mode_are_trained_on(capsys, tmp_path, data):
    """RGBA, palette, 16-bit, grey, grey with alpha, black and white, CMYK: none is replaced."""
    folder = tmp_path / "data"
    grey = np.arange(120, dtype=np.uint16).reshape(12, 10)
    image = PIL.Image.open(data / "train" / "ant" / "0.jpg")
    for name, modes in {"ant": ["RGBA", "P", "L", "LA"], "bee": ["1", "CMYK", "I;16", "RGB"]}.items():
        (folder / name).mkdir(parents=True)
        for mode in modes:
            picture = PIL.Image.fromarray(grey * 500) if mode == "I;16" else image.convert(mode)
            picture.save(folder / name / f"{mode.replace(';', '')}.{'jpg' if mode == 'CMYK' else 'png'}")
    assert run_stage("pretrain", folder, tmp_path / "out", max_steps=2, logging_steps=1, max_bad_images=0) == 0
    assert not (tmp_path / "out" / "bad_images.log").exists()
    assert "on 8 images at 8 px" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(0 < line["loss"] < 10 for line in lines)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_test_image_is_an_error_that_names_it(capsys, tmp_path, data, classifier, num_workers):
    shutil.copytree(data, tmp_path / "data")
    file = tmp_path / "data" / "test" / "bee" / "0.jpg"
    file.write_bytes(file.read_bytes()[:200])
    argv = words("evaluate", model=classifier, dataset=tmp_path / "data", num_workers=num_workers)
    error = the_error(capsys, main([*argv, "--output_dir", str(tmp_path / "out")]))
    assert error.startswith(f"{file}: cannot be decoded (")


@pytest.mark.parametrize("stage", STAGE)
def test_a_loss_that_is_not_finite_stops_the_run_with_one_line(capsys, tmp_path, data, stage):
    options = {"base_lr": 1e36, "warmup_epochs": 0, "max_steps": 4, "logging_steps": 1}
    error = the_error_after_a_bar(capsys, run_stage(stage, data, tmp_path, **options))
    assert error.startswith("the loss was not finite at step ")
    assert not (tmp_path / "config.json").exists()


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
        "the data set: the model does not know 1 of its classes: wasp; the model's classes without counterpart: bee"
    )
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_evaluated_are_named(capsys, tmp_path, data, autoencoder, classifier):
    def error(**options):
        return the_error(capsys, evaluate(data, classifier, tmp_path, **options))

    assert error(model="/no/such") == "model: there is no folder '/no/such'"
    assert error(model=data).startswith(f"model: '{data}' holds no config.json; give the folder that holds")
    assert error(model=autoencoder).startswith(f"model: '{autoencoder}' cannot be loaded as an image classifier: ")
    assert error(mae=classifier).startswith(f"mae: '{classifier}' cannot be loaded as a masked autoencoder: ")
    assert error(mae="/no/such") == "mae: there is no folder '/no/such'"


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


def test_a_device_that_is_not_there_is_named(capsys, monkeypatch, tmp_path, data, classifier):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert the_error(capsys, evaluate(data, classifier, tmp_path, device="cuda:7")).startswith("device: 'cuda:7'")


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
    assert the_error(capsys, main(words("predict", image, model="/no/such"))) == "model: there is no folder '/no/such'"
    status = main(words("predict", image, model=classifier, top_k=0))
    assert the_error(capsys, status) == "top_k: 0; at least 1 is needed"
    status = main(words("predict", image, model=classifier, device="nonsense"))
    assert the_error(capsys, status).startswith("device: 'nonsense'")


# What is not the user's mistake


def test_an_error_from_inside_a_library_keeps_its_traceback(monkeypatch):
    """Only what the package says on purpose is one line: a bug must stay findable."""
    monkeypatch.setitem(COMMANDS, "pretrain", lambda argv: int("not a number"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["pretrain"])
    monkeypatch.setitem(COMMANDS, "pretrain", lambda argv: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        main(["pretrain"])


def test_an_interrupted_run_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "pretrain", interrupted)
    assert main(["pretrain"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command continues from the last checkpoint\n"


@pytest.mark.parametrize("script", ["run_mae", "run_finetune", "run_evaluation"])
def test_the_scripts_are_the_commands(capsys, monkeypatch, script):
    import runpy

    path = Path(__file__).parents[1] / "scripts" / f"{script}.py"
    monkeypatch.setattr("sys.argv", [str(path), "--zzz"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(path), run_name="__main__")
    assert the_error(capsys, exit_.value.code)
