"""What survives a crash: complete folders, the log up to the resumed step, and a stop request."""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest

from livt_hf.files import MARKER, incompleteness, publish_files, write_text
from livt_hf.training.checkpoint import (
    archive_later_checkpoints,
    find_resume_checkpoint,
    list_checkpoints,
    remove_old_checkpoints,
)
from livt_hf.training.run import MetricsLog, Run
from livt_hf.training.stopping import StopSignal


def checkpoint(path):
    """What a run does to write a checkpoint, in its one process."""
    alone = SimpleNamespace(wait_for_everyone=lambda: None)
    return Run(path.parent).checkpoint(int(path.name.split("-")[1]), alone)


def write_checkpoint(path, **contents):
    with checkpoint(path) as temporary:
        for name, text in (contents or {"weights": "1234"}).items():
            (temporary / name).write_text(text)


def files_of(folder):
    """``{relative path: text}`` of everything in a folder, hidden files included."""
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


# Folders


def test_a_folder_appears_complete_and_lists_its_files(tmp_path):
    with checkpoint(tmp_path / "run" / "checkpoint-4") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_text("12345")
        (folder / "state").write_text("")
        assert not (tmp_path / "run" / "checkpoint-4").exists()
    marker = json.loads((tmp_path / "run" / "checkpoint-4" / MARKER).read_text())
    assert marker == {"files": {"deep/weights": 5, "state": 0}}
    assert incompleteness(tmp_path / "run" / "checkpoint-4") is None
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError("disk full"), ValueError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_after_an_error_only_the_old_folder_remains(tmp_path, error, raised):
    write_checkpoint(tmp_path / "checkpoint-4", weights="old")
    before = files_of(tmp_path)

    def write_half():
        with checkpoint(tmp_path / "checkpoint-4") as folder:
            (folder / "weights").write_text("half of the new")
            raise error

    with pytest.raises(raised):
        write_half()
    assert files_of(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    write_checkpoint(tmp_path / "checkpoint-4", weights="old", scaler="old")
    write_checkpoint(tmp_path / "checkpoint-4", weights="new")
    assert set(files_of(tmp_path / "checkpoint-4")) == {"weights", MARKER}
    assert incompleteness(tmp_path / "checkpoint-4") is None


def test_what_a_killed_process_left_behind_is_ignored_and_not_published(tmp_path):
    """A process killed while it writes leaves its temporary folder, which no other process removed."""
    write_checkpoint(tmp_path / "checkpoint-2")
    writing = checkpoint(tmp_path / "checkpoint-4")
    left_behind = writing.__enter__()
    (left_behind / "half").write_text("1")
    assert tmp_path in left_behind.parents  # the same disk, so that renaming is possible
    assert list_checkpoints(tmp_path) == [(2, tmp_path / "checkpoint-2")]
    assert find_resume_checkpoint(tmp_path, "auto") == (tmp_path / "checkpoint-2", [])
    write_checkpoint(tmp_path / "checkpoint-4", weights="12")
    assert set(files_of(tmp_path / "checkpoint-4")) == {"weights", MARKER}
    assert not left_behind.exists()


def damage_nothing(folder):
    pass


def remove_marker(folder):
    (folder / MARKER).unlink()


def truncate_weights(folder):
    (folder / "weights").write_text("123")


def remove_weights(folder):
    (folder / "weights").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_nothing, None),
        (remove_marker, f"it has no {MARKER}: its writing was interrupted"),
        (truncate_weights, "its file weights has 3 bytes instead of 4"),
        (remove_weights, "its file weights is missing"),
    ],
)
def test_why_a_checkpoint_is_incomplete(tmp_path, damage, reason):
    write_checkpoint(tmp_path / "checkpoint-1", weights="1234", state="{}")
    damage(tmp_path / "checkpoint-1")
    assert incompleteness(tmp_path / "checkpoint-1") == reason


@pytest.mark.parametrize(
    "marker", [b"", b'{"files": {"wei', b"[]", b"{}", b'{"files": null}', b'{"files": 3}', b"\xff"]
)
def test_a_damaged_marker_makes_a_checkpoint_incomplete(tmp_path, marker):
    write_checkpoint(tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / MARKER).write_bytes(marker)
    assert incompleteness(tmp_path / "checkpoint-1") == f"its {MARKER} is damaged"


def test_checkpoints_are_listed_by_step_and_nothing_else_is(tmp_path):
    for step in (10, 9):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    for name in ("checkpoint-best", "checkpoint-9.old", "my-checkpoint-3"):
        shutil.copytree(tmp_path / "checkpoint-9", tmp_path / name)
    (tmp_path / "checkpoint-8").write_text("a file")
    (tmp_path / "checkpoint-11").mkdir()  # incomplete, listed all the same
    assert [step for step, _ in list_checkpoints(tmp_path)] == [9, 10, 11]
    assert list_checkpoints(tmp_path / "nowhere") == []


# What a run resumes from


def test_auto_takes_the_newest_complete_one_and_reports_what_it_skipped(tmp_path):
    for step in (2, 4, 10, 12):
        write_checkpoint(tmp_path / f"checkpoint-{step}", weights="1234")
    truncate_weights(tmp_path / "checkpoint-10")
    remove_marker(tmp_path / "checkpoint-12")
    remove_marker(tmp_path / "checkpoint-2")  # older than the one taken: not reported
    assert find_resume_checkpoint(tmp_path, "auto") == (
        tmp_path / "checkpoint-4",
        [
            f"skipped {tmp_path / 'checkpoint-12'}: it has no {MARKER}: its writing was interrupted",
            f"skipped {tmp_path / 'checkpoint-10'}: its file weights has 3 bytes instead of 4",
        ],
    )


def test_auto_starts_from_scratch_if_nothing_is_complete(tmp_path):
    assert find_resume_checkpoint(tmp_path / "nowhere", "auto") == (None, [])
    (tmp_path / "checkpoint-3").mkdir()
    checkpoint, skipped = find_resume_checkpoint(tmp_path, "auto")
    assert (checkpoint, len(skipped)) == (None, 1)


def test_never_refuses_a_folder_with_checkpoints(tmp_path):
    assert find_resume_checkpoint(tmp_path, "never") == (None, [])
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match=f"output_dir: '{tmp_path}' contains checkpoints of an earlier run"):
        find_resume_checkpoint(tmp_path, "never")


def test_a_path_must_be_a_complete_checkpoint(tmp_path):
    write_checkpoint(tmp_path / "checkpoint-3", weights="1234")
    path = str(tmp_path / "checkpoint-3")
    assert find_resume_checkpoint(tmp_path / "elsewhere", path) == (tmp_path / "checkpoint-3", [])
    remove_weights(tmp_path / "checkpoint-3")
    with pytest.raises(ValueError, match=f"resume: '{path}' is not a complete checkpoint: its file weights is missing"):
        find_resume_checkpoint(tmp_path, path)
    with pytest.raises(ValueError, match="resume: 'nope' is not a complete checkpoint: there is no such folder"):
        find_resume_checkpoint(tmp_path, "nope")


def test_old_and_incomplete_checkpoints_are_removed_and_the_newest_complete_ones_kept(tmp_path):
    for step in (1, 5, 10, 20, 30):
        write_checkpoint(tmp_path / f"checkpoint-{step}", weights="1234")
    truncate_weights(tmp_path / "checkpoint-20")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "metrics.jsonl").write_text("")
    remove_old_checkpoints(tmp_path, keep=2)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["checkpoint-10", "checkpoint-30", "checkpoint-best", "metrics.jsonl"]


def test_a_run_resumed_from_an_earlier_checkpoint_keeps_its_own_checkpoints(tmp_path, capsys):
    """The later ones of the abandoned branch are moved, with its log, not lost."""
    for step in (600, 900, 1000):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 600}\n{"step": 1000}\n')
    archive_later_checkpoints(tmp_path, 600)
    MetricsLog(tmp_path, 600)
    for step in (650, 700):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
        remove_old_checkpoints(tmp_path, keep=2)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [650, 700]
    assert find_resume_checkpoint(tmp_path, "auto") == (tmp_path / "checkpoint-700", [])
    assert capsys.readouterr().out == (
        f"the run starts at step 600: moved checkpoint-900, checkpoint-1000 and a copy of the log in {tmp_path} to "
        "abandoned-1\n"
    )
    assert find_resume_checkpoint(tmp_path, str(tmp_path / "abandoned-1" / "checkpoint-1000"))[1] == []
    assert (tmp_path / "abandoned-1" / "metrics.jsonl").read_text() == '{"step": 600}\n{"step": 1000}\n'
    archive_later_checkpoints(tmp_path, 650)
    archive_later_checkpoints(tmp_path, 650)
    assert [path.name for path in tmp_path.glob("abandoned-*/checkpoint-700")] == ["checkpoint-700"]
    assert not (tmp_path / "abandoned-3").exists()


# Files


def test_published_files_leave_the_others_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.json").write_text("old")
    write_checkpoint(tmp_path / "checkpoint-1")
    before = files_of(tmp_path)
    with publish_files(tmp_path) as folder:
        (folder / "config.json").write_text("new")
        (folder / "model").write_text("weights")
        assert files_of(folder.parent).items() >= before.items()
    assert files_of(tmp_path) == {**before, "config.json": "new", "model": "weights"}


def test_after_an_error_no_file_is_published(tmp_path):
    (tmp_path / "config.json").write_text("old")

    def write_half():
        with publish_files(tmp_path) as folder:
            (folder / "config.json").write_text("new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert files_of(tmp_path) == {"config.json": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_files_are_published_into_a_new_folder(tmp_path):
    with publish_files(tmp_path / "a" / "b") as folder:
        (folder / "model").write_text("weights")
    assert files_of(tmp_path) == {"a/b/model": "weights"}


def test_text_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "results.json"
    write_text(file, "Käse\n")
    assert file.read_bytes() == "Käse\n".encode()
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "half \ud800")
    assert file.read_bytes() == "Käse\n".encode()
    write_text(file, "new")
    assert files_of(tmp_path)["results.json"] == "new"
    assert not [path for path in tmp_path.iterdir() if path != file]


# The log of a run


def test_a_resumed_log_is_cut_back_to_whole_lines_up_to_the_resumed_step(tmp_path):
    lines = [
        '{"step": 2, "loss": 1.5}',
        '{"step": 4, "loss": 1.25}',
        '{"step": 4, "eval_accuracy": 50.0}',
        '{"step": 6, "loss": 1.0}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 8, "lo')  # torn by a crash
    log = MetricsLog(tmp_path, resumed_step=4)
    assert log.path.read_text().splitlines() == lines[:3]
    log.write({"step": 6, "loss": 0.75})
    assert log.path.read_text() == "\n".join([*lines[:3], '{"step": 6, "loss": 0.75}']) + "\n"


@pytest.mark.parametrize("torn", ['{"ste', '{"step"', '{"step": 2', '"', "[2]", "", '{"loss": 1.0}'])
def test_a_torn_line_goes_even_if_the_run_resumes_after_it(tmp_path, torn):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{torn}')
    assert MetricsLog(tmp_path, resumed_step=9).path.read_text() == '{"step": 1}\n'


def test_a_new_run_starts_with_an_empty_log(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert MetricsLog(tmp_path).path.read_text() == ""
    MetricsLog(tmp_path / "new" / "run").write({"step": 1})
    assert (tmp_path / "new" / "run" / "metrics.jsonl").read_text() == '{"step": 1}\n'


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered_and_the_handlers_are_put_back(number):
    seen = []
    previous = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        signal.signal(number, lambda *_: seen.append(number))
        with StopSignal() as stop:
            assert stop.received is None
            os.kill(os.getpid(), number)
            assert stop.received == number.name
        assert seen == []
        os.kill(os.getpid(), number)  # the handler from before
        assert seen == [number]
        assert stop.received == number.name
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def test_the_handlers_are_put_back_after_an_error_too():
    previous = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)}
    with pytest.raises(ValueError, match="not finite"), StopSignal():
        raise ValueError("not finite")
    assert {each: signal.getsignal(each) for each in previous} == previous
