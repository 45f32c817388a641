"""Whatever a run owes after its training is made good by the same command, wherever the run was killed."""

import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest

from helpers.hub_server import Hub, redirect_client, serve
from helpers.processes import exit_status, forked
from helpers.training import FINETUNE, PRETRAIN, QUIET, same_weights
from livt_hf.config.arguments import FinetuneArguments, PretrainArguments
from livt_hf.files import read_run
from livt_hf.training.finetuning import finetune
from livt_hf.training.pretraining import pretrain

pytestmark = pytest.mark.usefixtures("unrendered")

KILLED = 9
LAST_STEP = {"max_steps": 4, "save_every": 3, "logging_steps": 2}  # a checkpoint, then one more step
REPO = "tester/model"


def run_stage(stage, folder, **options) -> int:
    options = {**LAST_STEP, "output_dir": str(folder), **options}
    if stage == "pretrain":
        return int(pretrain(PretrainArguments(**{**PRETRAIN, **options})) is None)
    return int(finetune(FinetuneArguments(**{**FINETUNE, **options}), QUIET) is None)


def killed_before_write(number: int, folder: Path) -> None:
    """End this process before one of the writes into a folder that follow the training, counted from 1."""
    seen, root = 0, str(folder)

    def watch(event, details):
        nonlocal seen
        if event == "open":
            writes = isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            writes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
        if not writes or not str(details[0]).startswith(root) or str(details[0]).endswith(".lock"):
            return
        seen += bool(seen) or ".final.tmp" in str(details[0])  # from the first file of the model on
        if seen == number:
            os._exit(KILLED)

    sys.addaudithook(watch)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module", params=["pretrain", "finetune"])
def almost_trained(request, tmp_path_factory):
    """A stage, the folder of a run at its last checkpoint, a copy of it, and what the run becomes undisturbed."""
    stage, folder = request.param, tmp_path_factory.mktemp("runs") / "run"
    run_stage(stage, folder)
    for file in folder.iterdir():
        if file.is_file() and file.name != "metrics.jsonl":
            file.unlink()
    shutil.rmtree(folder / "checkpoint-4", ignore_errors=True)
    start = folder.with_name("start")
    shutil.copytree(folder, start)
    run_stage(stage, folder)
    return stage, folder, start, contents(folder)


def kill_and_repeat(almost_trained, number: int) -> bool:
    """Whether there was so late a write; after a kill before it, the same command must give the undisturbed folder."""
    stage, folder, start, undisturbed = almost_trained
    shutil.rmtree(folder)
    shutil.copytree(start, folder)

    def run():
        killed_before_write(number, folder)
        return run_stage(stage, folder)

    if exit_status(forked(run)) != KILLED:
        return False
    left = sorted(contents(folder))
    assert exit_status(forked(lambda: run_stage(stage, folder), log=folder.with_name("log"))) == 0
    found = contents(folder)
    assert found.keys() == undisturbed.keys(), f"killed before write {number}, which left {left}"
    different = {name for name in found if found[name] != undisturbed[name]}
    assert different <= {"metrics.jsonl"}, f"killed before write {number}, which left {left}"  # has speeds
    return True


def test_killed_between_some_writes(almost_trained):
    chosen = random.Random(0)
    for first in (1, 7, 13):
        assert kill_and_repeat(almost_trained, chosen.randint(first, first + 5))


@pytest.mark.slow
def test_killed_between_any_two_writes(almost_trained):
    number = 1
    while kill_and_repeat(almost_trained, number):
        number += 1
    print(f"\n{almost_trained[0]}: killed before each of {number - 1} writes")
    assert number > 15


def test_an_old_config_beside_new_weights_is_not_finished(tmp_path):
    """The longer run replaces a finished model, and is killed between its files."""
    folder = tmp_path / "run"
    run_stage("finetune", folder)
    for steps in (4, 6):
        run_stage("finetune", tmp_path / "whole" / "run", max_steps=steps)

    def longer():
        os_replace = Path.replace

        def replace(self, target):
            if Path(target) == folder / "model.safetensors":
                os._exit(KILLED)
            return os_replace(self, target)

        Path.replace = replace
        return run_stage("finetune", folder, max_steps=6)

    assert exit_status(forked(longer)) == KILLED
    assert read_run(folder) is None
    assert (folder / "model.safetensors").exists()
    assert not (folder / "README.md").exists()
    run_stage("finetune", folder, max_steps=6)
    assert same_weights(folder, tmp_path / "whole" / "run")


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("missing", ["README.md", "results.json"])
def test_a_missing_card_or_evaluation_is_made_good(tmp_path, capsys, stage, missing):
    folder = tmp_path / "run"
    if stage == "pretrain" and missing == "results.json":
        pytest.skip("pretraining has no results")
    run_stage(stage, folder)
    before = contents(folder)
    (folder / missing).unlink()
    capsys.readouterr()
    run_stage(stage, folder)
    assert f"finished after 4 steps; missing: {missing}\n" in capsys.readouterr().out
    assert contents(folder) == before
    run_stage(stage, folder)
    assert "finished after 4 steps; nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("request_number", [0, 3, 5])
def test_an_upload_that_was_killed_is_repeated(tmp_path, monkeypatch, capsys, request_number):
    upload = {"push_to_hub": True, "hub_model_id": REPO, "hub_strategy": "end"}
    folder = tmp_path / "run"
    run_stage("pretrain", folder)
    with serve(Hub()) as hub:
        redirect_client(monkeypatch, hub)
        hub.fail = lambda request, number: os.kill(child, signal.SIGKILL) if number == request_number else None
        child = forked(lambda: run_stage("pretrain", folder, **upload))
        assert exit_status(child) == -signal.SIGKILL
        hub.fail = lambda request, number: None
        assert "uploaded" not in read_run(folder)
        run_stage("pretrain", folder, **upload)
        assert hub.model(REPO).files()["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        requests = len(hub.requests)
        capsys.readouterr()
        run_stage("pretrain", folder, **upload)
        assert "nothing to do" in capsys.readouterr().out
        run_stage("pretrain", folder)  # without an upload nothing is owed
        assert len(hub.requests) == requests
        run_stage("pretrain", folder, **{**upload, "hub_model_id": f"{REPO}-2"})
        assert "model.safetensors" in hub.model(f"{REPO}-2").files()
