"""One run at a time in a folder: who is refused, with what words, and what is left behind."""

import json
import os
import platform
import re
import signal
import subprocess
import sys

import filelock
import pytest

from helpers.cli import run_stage, the_error, words
from helpers.gradients import balanced_trainer
from helpers.paths import ROOT
from helpers.processes import exit_status, forked, locked_by_another
from helpers.training import PRETRAIN, launch_environment
from livt_hf.cli import main
from livt_hf.files import LOCK_FILE, RUN_FILE, check_new_folder
from livt_hf.hub.upload import PUBLISHED
from livt_hf.training.lock import lock_folder

COMMANDS = {
    "compare": {"losses": "ce", "dataset": "digits"},
    "quickstart": {},
    "evaluate": {"model": "/no/such", "dataset": "digits"},
    "adjust": {"model": "/no/such", "temperature": 2},
    "export": {"model": "/no/such", "format": "timm"},
}


def is_free(folder) -> bool:
    try:
        with lock_folder(folder):
            return True
    except ValueError:
        return False


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_second_run_is_refused_before_it_reads_anything(capsys, tmp_path, stage):
    folder = tmp_path / "out"
    with locked_by_another(folder) as holder:
        (folder / RUN_FILE).write_text("damaged: it would be another error")
        error = the_error(capsys, run_stage(stage, "digits", folder))
    pattern = (
        rf"output_dir: '{folder}' is in use by another run \(process {holder} on {re.escape(platform.node())}, since "
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\); wait for its end, or name another folder"
    )
    assert re.fullmatch(pattern, error)


@pytest.mark.parametrize("command", COMMANDS)
def test_other_commands_are_refused_too(capsys, tmp_path, command):
    with locked_by_another(tmp_path):
        error = the_error(capsys, main(words(command, **COMMANDS[command], output_dir=tmp_path)))
    assert error.startswith(f"output_dir: '{tmp_path}' is in use by another run (process ")


def test_commands_with_other_words_are_refused_too(capsys, tmp_path):
    with locked_by_another(tmp_path):
        for argv in (
            words("dataset", "prepare", dataset="digits", output_dir=tmp_path),
            words("convert", "/no/such.pth", tmp_path, source="mae"),
        ):
            assert "is in use by another run (process " in the_error(capsys, main(argv))


def test_a_trainer_used_alone_is_refused_too(tmp_path):
    trainer = balanced_trainer(tmp_path, 8, 1)
    with locked_by_another(tmp_path), pytest.raises(ValueError, match="is in use by another run"):
        trainer.train()


@pytest.mark.parametrize("inherited", [False, True])
def test_a_killed_run_holds_nobody_up(tmp_path, inherited):
    """Not even while workers of its loader live on."""
    with locked_by_another(tmp_path, inherited) as holder:
        assert not is_free(tmp_path)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        assert (tmp_path / LOCK_FILE).exists()
        assert is_free(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_of_runs_that_start_at_the_same_moment_one_wins(tmp_path):
    """In a folder that does not exist; the winner lets go when all others have been refused."""
    start, go = os.pipe()
    done, report = os.pipe()

    hold, release = os.pipe()

    def contend():
        for descriptor in (go, done, release):
            os.close(descriptor)
        os.read(start, 1)
        try:
            with lock_folder(tmp_path / "new" / "out"):
                os.write(report, b"w")
                os.read(hold, 1)
        except ValueError as error:
            os.write(report, b"l" if "is in use by another run" in str(error) else b"?")

    children = [forked(contend) for _ in range(8)]
    for descriptor in (start, report, hold):
        os.close(descriptor)
    os.close(go)  # the start
    reports = b"".join(os.read(done, 1) for _ in children)
    os.close(release)
    os.close(done)
    assert [exit_status(child) for child in children] == [0] * 8
    assert sorted(reports) == sorted(b"w" + b"l" * 7)  # an empty folder may remain: whoever made it may have lost


def test_the_lock_can_be_taken_again_inside(tmp_path):
    with lock_folder(tmp_path):
        with lock_folder(tmp_path):
            pass
        assert (tmp_path / LOCK_FILE).exists()
        assert exit_status(forked(lambda: not is_free(tmp_path))) == 1  # still refused
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_folder_is_left_as_it_was(tmp_path):
    (tmp_path / "old").mkdir()
    with lock_folder(tmp_path / "old"), lock_folder(tmp_path / "a" / "b"), lock_folder(tmp_path / "used"):
        (tmp_path / "used" / "file").write_text("new")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["old", "used", "used/file"]


def test_what_a_killed_command_left_does_not_make_a_folder_old(tmp_path):
    (tmp_path / LOCK_FILE).write_text("")
    (tmp_path / ".final.tmp").mkdir()
    assert check_new_folder(tmp_path) == tmp_path
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is not empty"):
        check_new_folder(tmp_path)


def test_the_lock_is_never_uploaded():
    assert not PUBLISHED.fullmatch(LOCK_FILE)


def test_only_the_first_process_of_a_run_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with locked_by_another(tmp_path), lock_folder(tmp_path):
        pass
    with lock_folder(tmp_path / "new"):
        assert not (tmp_path / "new").exists()


def test_a_finished_run_in_a_read_only_folder_needs_no_lock(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(filelock.FileLock, "_acquire", refused)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root
    error = f"output_dir: '{tmp_path}' cannot be created, {tmp_path} is not writable"
    with pytest.raises(ValueError, match=error), lock_folder(tmp_path):
        pass
    (tmp_path / RUN_FILE).write_text("{}")
    with lock_folder(tmp_path):
        pass


@pytest.mark.parametrize("command", ["adjust", "export", "evaluate", "quickstart", "compare"])
def test_a_file_in_place_of_the_folder_is_one_line(capsys, tmp_path, command):
    file = tmp_path / "file"
    file.write_text("mine")
    error = the_error(capsys, main(words(command, **COMMANDS[command], output_dir=file)))
    assert error == f"output_dir: '{file}' is a file; name a folder"
    error = the_error(capsys, main(words(command, **COMMANDS[command], output_dir=file / "below")))
    assert error == f"output_dir: '{file / 'below'}' cannot be created, {file} is a file; name another folder"
    assert file.read_text() == "mine"


def test_a_refused_lock_ends_all_processes_of_a_run(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", str(ROOT / "scripts" / "run_mae.py")]
    command += words(**PRETRAIN, output_dir=tmp_path)
    with locked_by_another(tmp_path):
        run = subprocess.run(
            command, capture_output=True, text=True, env=launch_environment(), timeout=300, check=False
        )
    assert run.returncode != 0
    assert f"error: output_dir: '{tmp_path}' is in use by another run" in run.stderr
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == platform.node()  # of the killed holder
