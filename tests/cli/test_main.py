"""The `livt` command: whatever is wrong with its input ends in one line that says what to mend."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Image

from helpers.cli import STAGE, run_stage, the_error
from helpers.paths import ROOT
from livt_hf import __version__
from livt_hf.cli import COMMANDS, main

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
        ("inspect", "livt: unknown command 'inspect'; it is `livt dataset inspect`"),
        ("train", "livt: unknown command 'train'; it is `livt finetune`"),
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
        "embed": ["--dataset", "x", "--output", "x.parquet"],
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
        (["quickstart"], "output_dir: none was given; name one with --output_dir"),
        (["evaluate", "--dataset", "d"], "model: none was given; name one with --model"),
        (["predict", "m", "a.jpg"], "model: none was given; did you mean `livt predict --model m a.jpg`?"),
        (["predict", "a.jpg"], "model: none was given; did you mean `livt predict --model a.jpg IMAGE`?"),
        (["predict", __file__], f"model: none was given; did you mean `livt predict --model MODEL {__file__}`?"),
        (["evaluate", "m"], "m: unexpected value; options are written --name value, such as --model m"),
        (["infer"], "livt: unknown command 'infer'; it is `livt predict`"),
        (["inspect"], "livt: unknown command 'inspect'; it is `livt dataset inspect`"),
        (["dataset", "prepare", "--dataset", "d"], "output_dir: none was given; name one with --output_dir"),
        (["evaluate", "--model", "m", "--datset", "d"], "--datset: unknown option; did you mean 'dataset'?"),
        (["convert", "in.pth", "out"], "source: give either --source (the format of IN) or --to official"),
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
    assert error(missing).startswith(f"dataset: '{missing}' is neither an existing folder nor a known name; give an")
    assert error("digit").endswith("did you mean 'digits'?")
    file = data / "train" / "ant" / "0.jpg"
    assert error(file).startswith(f"dataset: '{file}' is a file; name the folder of the images")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert error(empty).startswith(f"{empty}: no images found (no files); expected {empty}/train/CLASS/*.jpg")
    (empty / "notes").mkdir()
    (empty / "notes" / "read.txt").write_text("no image")
    assert error(empty).startswith(f"{empty}: no images found (1 other file: .txt); expected {empty}/train/CLASS/*.jpg")
    partly = tmp_path / "partly"
    shutil.copytree(data, partly)
    (partly / "train" / "cat").mkdir()
    assert error(partly) == f"{partly}/train: class folders without images: cat; add images or remove the folders"
    (partly / "train" / "cat").rmdir()
    shutil.rmtree(partly / "test")
    shutil.copytree(data / "test" / "ant", partly / "test" / "dog")
    assert error(partly).startswith(f"{partly}/test: none of its 1 class folders is among the training classes: dog;")
    assert not output.exists()


@pytest.mark.parametrize("stage", STAGE)
def test_labels_out_of_range_name_their_row(capsys, tmp_path, data, stage):
    image = {"bytes": (data / "train" / "ant" / "0.jpg").read_bytes(), "path": None}
    schema = Features({"image": Image(), "label": ClassLabel(names=["ant", "bee"])}).arrow_schema
    folder = tmp_path / "images"
    folder.mkdir()
    pq.write_table(pa.table({"image": [image] * 3, "label": [0, 1, 2]}, schema=schema), folder / "train-0.parquet")
    error = the_error(capsys, run_stage(stage, folder, tmp_path / "out"))
    assert error.startswith(f"{folder}: label 2 of train row 2 is not one of the 2 classes (0 to 1; 1 such rows)")


def test_one_class_is_too_few_for_a_classifier(capsys, tmp_path, data):
    shutil.copytree(data / "train" / "ant", tmp_path / "train" / "ant")
    error = the_error(capsys, run_stage("finetune", tmp_path, tmp_path / "out"))
    assert error == "class_counts: a class prior needs at least 2 classes, got ['ant']"


@pytest.mark.parametrize("stage", STAGE)
def test_a_batch_larger_than_the_data_is_named(capsys, tmp_path, data, stage):
    error = the_error(capsys, run_stage(stage, data, tmp_path / "out", batch_size=6, gradient_accumulation_steps=2))
    assert error == (
        "batch_size: a global batch of 12 images (6 x 2 accumulation steps x 1 processes) is larger than the 8 "
        "training images; lower it"
    )


def test_mixup_needs_an_even_batch(capsys, tmp_path, data):
    error = the_error(capsys, run_stage("finetune", data, tmp_path / "out", batch_size=3))
    assert error == "batch_size: 3 is odd, and mixup mixes neighbors; use an even one, or --mixup 0 --cutmix 0"


@pytest.mark.parametrize("stage", STAGE)
def test_an_output_folder_that_is_a_file_is_named(capsys, tmp_path, data, stage):
    file = tmp_path / "out"
    file.write_text("mine")
    assert the_error(capsys, run_stage(stage, data, file)).startswith(f"output_dir: '{file}'")
    error = the_error(capsys, run_stage(stage, data, file / "below"))
    assert error == f"output_dir: '{file / 'below'}' cannot be created, {file} is a file; name another folder"
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
        ({"imbalance_factor": 9}, "imbalance_factor: 9.0 leaves the smallest class without images; use at most"),
        ({"imbalance_factor": 0.5}, "imbalance_factor: 0.5 must be at least 1"),
        ({"horizontal_flip": 2}, "horizontal_flip: 2.0 must be between 0 and 1"),
        ({"min_crop_scale": -1}, "min_crop_scale: -1.0 must be between 0 and 1"),
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
        ({"rand_augment": "rnd"}, "rand_augment: 'rnd' is invalid; use one like 'rand-m9-mstd0.5-inc1'"),
        ({"random_erasing": 3}, "random_erasing: 3.0 must be between 0 and 1"),
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


# What is not the user's mistake


def test_an_error_from_inside_a_library_keeps_its_traceback(monkeypatch):
    """Only what the package says on purpose is one line: a bug must stay findable."""
    monkeypatch.setattr("livt_hf.cli.pretrain.run", lambda argv: int("not a number"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["pretrain"])
    monkeypatch.setattr("livt_hf.cli.pretrain.run", lambda argv: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        main(["pretrain"])


@pytest.mark.parametrize(("saved", "line"), [((), "interrupted\n"), (("all is safe",), "interrupted; all is safe\n")])
def test_an_interrupted_command_says_what_it_knows(capsys, monkeypatch, saved, line):
    def interrupted(argv):
        raise KeyboardInterrupt(*saved)

    monkeypatch.setattr("livt_hf.cli.pretrain.run", interrupted)
    assert main(["pretrain"]) == 130
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("script", ["run_mae", "run_finetune", "run_evaluation"])
def test_the_scripts_are_the_commands(capsys, monkeypatch, script):
    import runpy

    path = ROOT / "scripts" / f"{script}.py"
    monkeypatch.setattr("sys.argv", [str(path), "--zzz"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(path), run_name="__main__")
    assert the_error(capsys, exit_.value.code)
