"""Uploads during training, with the real client on a loopback Hub."""

import json
import shutil
import threading

import pytest
import torch

from helpers.hub_folder import CARD, REPO, TOKEN, make_model
from helpers.hub_server import Failure
from livt_hf.data.transforms import image_processor
from livt_hf.hub.background import BackgroundPusher


def make_checkpoint(run, step):
    """A complete checkpoint as written during training, without image processor and card."""
    checkpoint = make_model(run / f"checkpoint-{step}", seed=step)
    (checkpoint / "README.md").unlink()
    (checkpoint / "preprocessor_config.json").unlink()
    torch.save({"step": step}, checkpoint / "optimizer.pt")
    sizes = {file.name: file.stat().st_size for file in checkpoint.iterdir()}
    (checkpoint / "complete.json").write_text(json.dumps({"files": sizes}))
    return checkpoint


def pusher(run, **options):
    processor = image_processor(8, 0.875, [0.5] * 3, [0.5] * 3)
    return BackgroundPusher(REPO, run, processor, **{"token": TOKEN, "waits": (0.01,), **options})


def test_checkpoints_are_uploaded_during_training_even_if_deleted_meanwhile(hub, folder, tmp_path, capsys):
    gate = threading.Event()
    hub.fail = lambda request, number: gate.wait(20) and None
    run = tmp_path / "run"
    background = pusher(run)
    weights = {}
    for step in (1, 2, 3):
        checkpoint = make_checkpoint(run, step)
        weights[step] = (checkpoint / "model.safetensors").read_bytes()
        background.push(checkpoint, f"Step {step} of 4")
        shutil.rmtree(checkpoint)
    gate.set()
    background.wait()
    repository = hub.model(REPO)
    assert repository.messages[-1] == "Step 3 of 4"
    assert len(repository.commits) <= 3, "a newer checkpoint replaces a queued one"
    assert repository.files()["model.safetensors"] == weights[3]
    assert b"Step 3 of 4" in repository.files()["README.md"]
    assert "optimizer.pt" not in repository.files()
    assert background.finish(folder) is None
    assert repository.files()["README.md"] == CARD.encode()
    assert capsys.readouterr().out.splitlines()[-1] == f"uploaded to {hub.endpoint}/{REPO}"
    assert not (run / ".push").exists()


@pytest.mark.parametrize("strategy", ["end", "checkpoint", "all_checkpoints"])
def test_strategies(hub, folder, tmp_path, strategy):
    background = pusher(tmp_path, strategy=strategy)
    checkpoints = {step: make_checkpoint(tmp_path, step) for step in (1, 2)}
    for step, checkpoint in checkpoints.items():
        background.push(checkpoint, f"Step {step}")
        background.wait()
    assert background.finish(folder) is None
    names = {name.split("/")[0] for name in hub.model(REPO).files() if "/" in name}
    assert names == {"end": set(), "checkpoint": {"last-checkpoint"}}.get(strategy, {"checkpoint-1", "checkpoint-2"})
    if strategy == "checkpoint":
        files, newest = hub.model(REPO).files(), checkpoints[2]
        for file in newest.iterdir():
            assert files[f"last-checkpoint/{file.name}"] == file.read_bytes()


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_a_checkpoint_of_light_fine_tuning_is_uploaded_whole_or_not_at_all(hub, folder, tmp_path, strategy):
    """It has no model that could stand in the repository before the final one."""
    background = pusher(tmp_path, strategy=strategy)
    checkpoint = make_checkpoint(tmp_path, 1)
    (checkpoint / "model.safetensors").rename(checkpoint / "trained.safetensors")
    sizes = {file.name: file.stat().st_size for file in checkpoint.iterdir() if file.name != "complete.json"}
    (checkpoint / "complete.json").write_text(json.dumps({"files": sizes}))
    background.push(checkpoint, "Step 1")
    background.wait()
    assert not background.errors
    uploaded = set(hub.model(REPO).files()) if strategy == "checkpoint" else set()
    assert uploaded - {".gitattributes"} == (
        {f"last-checkpoint/{name}" for name in (*sizes, "complete.json")} if strategy == "checkpoint" else set()
    )
    assert background.finish(folder) is None
    assert "model.safetensors" in hub.model(REPO).files()


def test_a_hub_that_is_down_does_not_stop_training_and_gets_the_model_at_the_end(hub, folder, tmp_path, capsys):
    hub.fail = lambda request, number: Failure(500)
    background = pusher(tmp_path)
    background.push(make_checkpoint(tmp_path, 1), "Step 1")
    background.push(tmp_path / "nothing", "Step 2")
    background.wait()
    assert len(background.errors) == 2
    assert all("\n" not in line for line in background.errors)
    assert capsys.readouterr().err.endswith("".join(f"{line}\n" for line in background.errors))
    hub.fail = lambda request, number: None
    assert background.finish(folder) is None
    assert hub.model(REPO).files()["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_the_last_failure_is_one_line_with_the_command_that_uploads_it_later(hub, folder, tmp_path):
    background = pusher(tmp_path, private=True, revision="v2")
    hub.fail = lambda request, number: Failure(403)
    line = background.finish(folder)
    assert line.count("\n") == 0
    assert line.endswith(f"livt push --model {folder} --hub_model_id {REPO} --private --revision v2")
    background.push(make_checkpoint(tmp_path, 1), "after the end")
    assert hub.repositories == {}


def test_stopping_waits_for_nothing(hub, tmp_path):
    gate = threading.Event()
    hub.fail = lambda request, number: gate.wait(20) and None
    background = pusher(tmp_path)
    background.push(make_checkpoint(tmp_path, 1), "Step 1")
    background.stop()
    gate.set()
    background._thread.join(20)
    assert not background._thread.is_alive()
