"""Checkpoints that survive a crash at any instant, and the log of a run that goes with them.

A folder is filled under a temporary name, flushed to the disk, given a list of its files, and renamed. Only a folder
whose list agrees with its files counts as complete.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError

MARKER = "complete.json"
METRICS_FILE = "metrics.jsonl"
_CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")


def check_folder(output_dir: str | Path) -> None:
    """ValueError, in one line, where the folder of ``--output_dir`` is a file or cannot be made. It makes nothing."""
    path = Path(output_dir)
    if path.is_file():
        raise ValueError(f"output_dir: {str(output_dir)!r} is a file; name a folder")
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = "is a file" if there.is_file() else "may not be written to"
        raise ValueError(f"output_dir: {str(output_dir)!r} cannot be made, {there} {reason}; name another folder")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to write into; on leaving it without an error it is published as ``path``.

    After an error the temporary folder is removed and ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        publish(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish(folder: Path, path: Path) -> None:
    """Flush a folder on the same disk, list its files in it, and rename it to ``path``, which it replaces."""
    sizes = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        _flush(file)
        sizes[file.relative_to(folder).as_posix()] = file.stat().st_size
    write_text(folder / MARKER, json.dumps({"files": sizes}))
    shutil.rmtree(path, ignore_errors=True)
    folder.rename(path)
    _flush(path.parent)


@contextmanager
def publish_files(path: Path) -> Iterator[Path]:
    """A temporary folder whose files are moved into ``path``, beside what is there, on leaving it without an error."""
    temporary = path / ".final.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        files = sorted(temporary.iterdir())
        for file in files:
            _flush(file)
        for file in files:
            file.replace(path / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def explain_failed_write(path: Path) -> Iterator[None]:
    """Turn a write that failed, as on a full disk, into a ValueError of one line that names the folder ``path``."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch.save hides the system's reason behind an error of its own.
        if isinstance(error, RuntimeError) and not re.search("inline_container|PytorchStreamWriter", str(error)):
            raise
        reason = str(error).strip().splitlines()[0]
        free = shutil.disk_usage(next(folder for folder in path.parents if folder.exists())).free / 1e9
        raise ValueError(
            f"output_dir: {str(path)!r} cannot be written ({reason}; {free:.1f} GB are free); earlier checkpoints are "
            "as they were: make room, and the same command continues the run"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write a file so that it holds either its old or its new text, whatever happens."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _flush(temporary)
    temporary.replace(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def incompleteness(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or None if it is complete."""
    try:
        sizes = dict(json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))["files"])
    except FileNotFoundError:
        return f"it has no {MARKER}: it was not written to its end"
    except (ValueError, KeyError, TypeError):
        return f"its {MARKER} is damaged"
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"its file {name} is missing"
        if file.stat().st_size != size:
            return f"its file {name} has {file.stat().st_size} bytes instead of {size}"
    return None


def list_checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """The ``checkpoint-STEP`` folders of a run, complete or not, oldest step first."""
    folders = output_dir.iterdir() if output_dir.is_dir() else []
    matches = [(_CHECKPOINT_NAME.fullmatch(folder.name), folder) for folder in folders if folder.is_dir()]
    return sorted((int(match.group(1)), folder) for match, folder in matches if match)


def find_resume_checkpoint(output_dir: Path, resume: str) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, and a line for each newer one that was skipped.

    Args:
        resume: "auto" (the newest complete one of the run, if any), "never", or the path of one.

    Raises:
        ValueError: a path that is not a complete checkpoint; "never" although the run has checkpoints.
    """
    if resume == "never":
        if list_checkpoints(output_dir):
            raise ValueError(
                f"output_dir: {str(output_dir)!r} holds checkpoints of an earlier run; choose another folder, delete "
                "them, or continue that run with --resume auto"
            )
        return None, []
    if resume != "auto":
        reason = incompleteness(Path(resume)) if Path(resume).is_dir() else "there is no such folder"
        if reason:
            raise ValueError(f"resume: {resume!r} is not a complete checkpoint: {reason}; name another, or use auto")
        return Path(resume), []
    skipped: list[str] = []
    for _, folder in reversed(list_checkpoints(output_dir)):
        reason = incompleteness(folder)
        if reason is None:
            return folder, skipped
        skipped.append(f"skipped {folder}: {reason}")
    return None, skipped


def set_aside_later_checkpoints(output_dir: Path, step: int) -> None:
    """Move the complete checkpoints after the step that a run begins at into ``abandoned-N``, with the log, and say so.

    They are of a branch that it leaves. By their steps they would count as its newest ones: what it saves would be
    removed as old, and ``auto`` would go on from them.
    """
    later = [folder for at, folder in list_checkpoints(output_dir) if at > step and incompleteness(folder) is None]
    if not later:
        return
    places = (output_dir / f"abandoned-{number}" for number in itertools.count(1))
    aside = next(place for place in places if not place.exists())
    aside.mkdir()
    with suppress(FileNotFoundError):
        shutil.copyfile(output_dir / METRICS_FILE, aside / METRICS_FILE)
    for folder in later:
        folder.rename(aside / folder.name)
    names = ", ".join(folder.name for folder in later)
    print(f"this run begins at step {step}: {names} of {output_dir} and a copy of the log are now in {aside.name}")


def remove_old_checkpoints(output_dir: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest complete checkpoints, and incomplete ones."""
    complete = [folder for _, folder in list_checkpoints(output_dir) if incompleteness(folder) is None]
    stay = set(complete[-keep:])
    for _, folder in list_checkpoints(output_dir):
        if folder not in stay:
            shutil.rmtree(folder, ignore_errors=True)


class MetricsLog:
    """OUTPUT/metrics.jsonl: one JSON object a logged step. A resume first cuts it back to the resumed step."""

    def __init__(self, output_dir: Path, resumed_step: int = 0):
        output_dir.mkdir(parents=True, exist_ok=True)
        self.path = output_dir / METRICS_FILE
        if self.path.exists():
            write_text(self.path, "".join(f"{line}\n" for line in _lines_up_to(self.path, resumed_step)))

    def write(self, values: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def _lines_up_to(path: Path, step: int) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            logged_step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue  # torn by a crash
        if logged_step <= step:
            yield line


class StopSignal:
    """Remembers SIGTERM and SIGUSR1, so that the training loop can finish its step, save and leave."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
