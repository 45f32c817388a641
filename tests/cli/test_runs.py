"""The `livt` command and its runs: output folders of other runs, and images that cannot be read."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest

from helpers.cli import (
    STAGE,
    run_stage,
    the_error,
    the_error_after_a_bar,
)
from livt_hf.cli import main

pytestmark = pytest.mark.usefixtures("unrendered")

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


def test_further_training_arguments_are_part_of_a_run(capsys, tmp_path, data):
    out = tmp_path / "out"

    def run(**options):
        return run_stage("finetune", data, out, max_steps=2, save_every=1, **options)

    assert run(max_grad_norm=0.5, run_name="first") == 0
    assert "--max_grad_norm 0.5\n" in (out / "README.md").read_text()
    capsys.readouterr()
    assert run(max_grad_norm=0.5, disable_tqdm="true") == 0  # what changes no result is free, and no one's command
    assert "nothing to do" in capsys.readouterr().out
    assert "max_grad_norm: 0.5 -> 1.5" in the_error(capsys, run(max_grad_norm=1.5))
    assert "max_grad_norm: 0.5 -> default" in the_error(capsys, run())
    (out / "run.json").unlink()
    shutil.rmtree(out / "checkpoint-2")
    assert run(max_grad_norm=1.5) == 0
    assert "resuming with changed max_grad_norm: 0.5 -> 1.5" in capsys.readouterr().out


def test_a_masked_autoencoder_is_told_from_a_classifier(capsys, tmp_path, runs, data):
    for words, message in (
        (["--model", str(runs / "pretrain")], "it is a 'vit_mae' model; give the output folder of `livt finetune`"),
        (
            ["--model", str(runs / "finetune"), "--mae", str(runs / "finetune")],
            "it is a 'beit' model; give the output folder of `livt pretrain`",
        ),
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
    assert "contains this run, finished after 2 steps; nothing to do" in capsys.readouterr().out
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
    assert error().startswith(f"output_dir: '{tmp_path / 'out'}' contains a finished quickstart; name a new folder")
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
        f"max_bad_images: 1 training images cannot be read, more than the limit of 0; see "
        f"{tmp_path / 'bad_images.log'}; repair them or raise the limit"
    )
    assert (tmp_path / "bad_images.log").read_text().startswith(f"{file}: cannot be decoded (")


def test_images_of_every_mode_are_trained_on(capsys, tmp_path, data):
    """RGBA, palette, 16-bit, gray, gray with alpha, black and white, CMYK: none is replaced."""
    folder = tmp_path / "data"
    gray = np.arange(120, dtype=np.uint16).reshape(12, 10)
    image = PIL.Image.open(data / "train" / "ant" / "0.jpg")
    for name, modes in {"ant": ["RGBA", "P", "L", "LA"], "bee": ["1", "CMYK", "I;16", "RGB"]}.items():
        (folder / name).mkdir(parents=True)
        for mode in modes:
            picture = PIL.Image.fromarray(gray * 500) if mode == "I;16" else image.convert(mode)
            picture.save(folder / name / f"{mode.replace(';', '')}.{'jpg' if mode == 'CMYK' else 'png'}")
    assert run_stage("pretrain", folder, tmp_path / "out", max_steps=2, logging_steps=1, max_bad_images=0) == 0
    assert not (tmp_path / "out" / "bad_images.log").exists()
    assert "on 8 images at 8 px" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(0 < line["loss"] < 10 for line in lines)


@pytest.mark.parametrize("stage", STAGE)
def test_a_loss_that_is_not_finite_stops_the_run_with_one_line(capsys, tmp_path, data, stage):
    options = {"base_lr": 1e36, "warmup_epochs": 0, "max_steps": 4, "logging_steps": 1}
    error = the_error_after_a_bar(capsys, run_stage(stage, data, tmp_path, **options))
    assert error.startswith("the loss was not finite at step ")
    assert not (tmp_path / "config.json").exists()


def test_an_option_that_training_arguments_refuse_is_one_line(capsys, tmp_path, data):
    error = the_error(capsys, run_stage("finetune", data, tmp_path / "out", accelerator_config="{bad"))
    assert error.startswith("one of the options of TrainingArguments is refused: ")
