"""Files of an output folder: names, crash-safe writing, and reading back the record and the log of a run."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MARKER = "complete.json"  # in a complete checkpoint: its files and their sizes
METRICS_FILE = "metrics.jsonl"
PREDICTIONS_FILE = "predictions.parquet"  # beside results.json: the predictions that it summarizes
RUN_FILE = "run.json"  # in the output folder of a finished run, and in checkpoints of fine-tuning
LOCK_FILE = ".lock"  # in the output folder of a running command (see `training/lock.py`)
UNPUBLISHED = ".final.tmp"  # files that `publish_files` will move into the folder


def check_folder(folder: str | Path, option: str = "output_dir") -> None:
    """ValueError if the folder of an option is a file, is read-only, or cannot be created; creates nothing."""
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{option}: {str(folder)!r} is a file; name a folder")
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        reason = "is not writable" if existing.is_dir() else "is a file"
        raise ValueError(f"{option}: {str(folder)!r} cannot be created, {existing} {reason}; name another folder")


def publish(folder: Path, path: Path) -> None:
    """Flush a folder to disk, add the list of its files, and rename it to ``path`` (same file system), replacing it."""
    _apply_umask(folder)
    sizes = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        _flush(file)
        sizes[file.relative_to(folder).as_posix()] = file.stat().st_size
    write_text(folder / MARKER, json.dumps({"files": sizes}))
    shutil.rmtree(path, ignore_errors=True)
    folder.rename(path)
    _flush(path.parent)


@contextmanager
def publish_files(path: Path, last: str = "", replaced: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary folder whose files are moved into ``path`` on exit; other files there are kept.

    Args:
        last: file whose presence proves that all others are in place: it is moved last, and an earlier one of this name
            is removed first.
        replaced: files that are removed, too, before anything is moved.
    """
    temporary = path / UNPUBLISHED
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _apply_umask(temporary)
        files = sorted(temporary.iterdir(), key=lambda file: (file.name == last, file.name))
        for file in files:
            _flush(file)
        for name in (last, *replaced) if last else ():
            (path / name).unlink(missing_ok=True)
            _flush(path)
        for file in files:
            if file.name == last:
                _flush(path)
            file.replace(path / file.name)
        _flush(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _apply_umask(folder: Path) -> None:
    """Give all files in a new folder the permissions of new files: safetensors lets only the owner read its files.

    The umask is read off the folder: asking for it would change it for a moment, in all threads.
    """
    permissions = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(permissions)


@contextmanager
def explain_failed_write(path: Path) -> Iterator[None]:
    """Turn a failed write into ``path``, such as on a full disk, into a one-line ValueError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch.save wraps the OSError in a RuntimeError.
        if isinstance(error, RuntimeError) and not re.search("inline_container|PytorchStreamWriter", str(error)):
            raise
        reason = str(error).strip().splitlines()[0]
        free = shutil.disk_usage(next(folder for folder in path.parents if folder.exists())).free / 1e9
        raise ValueError(
            f"output_dir: {str(path)!r} cannot be written ({reason}; {free:.1f} GB are free); earlier checkpoints are "
            "intact: make room and repeat the command to continue the run"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically: after a crash, the file has either its old or its new content."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`, for bytes."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    publish_file(temporary, path)


def publish_file(temporary: Path, path: Path) -> None:
    """Flush a complete file to disk and rename it to ``path`` (same file system), replacing it."""
    _flush(temporary)
    temporary.replace(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def incompleteness(checkpoint: Path) -> str | None:
    """Why a checkpoint is unusable, or None if it is complete."""
    try:
        sizes = dict(json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))["files"])
    except FileNotFoundError:
        return f"it has no {MARKER}: its writing was interrupted"
    except (ValueError, KeyError, TypeError):
        return f"its {MARKER} is damaged"
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"its file {name} is missing"
        if file.stat().st_size != size:
            return f"its file {name} has {file.stat().st_size} bytes instead of {size}"
    return None


def read_run(folder: Path) -> dict[str, Any] | None:
    """The record of the run that trained the model in a folder; None if there is none, as for a converted model.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        if isinstance(record["steps"], int) and isinstance(record["arguments"], dict):
            return record
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(
        f"{folder / RUN_FILE} is damaged: it is not the record of a run; delete it, and the command that trained the "
        "model continues from the last checkpoint"
    )


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run's metrics.jsonl; empty if there is no such file."""
    try:
        lines = (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for line in lines:
        with suppress(ValueError):  # torn by a crash
            entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict)]


def is_new_folder(path: Path) -> bool:
    """Whether there is nothing at the path, or an empty folder: what a killed command left in it does not count."""
    if not path.is_dir():
        return not path.exists()
    return all(fnmatch(file.name, ".*.tmp") or file.name == LOCK_FILE for file in path.iterdir())


def check_new_folder(folder: str | Path, option: str = "output_dir") -> Path:
    """The folder of an option as a path; ValueError unless it `is_new_folder`."""
    path = Path(folder)
    if not is_new_folder(path):
        raise ValueError(f"{option}: {str(folder)!r} is not empty; name a new folder")
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object in a model folder; ValueError if it is missing or invalid."""
    try:
        return dict(json.loads((folder / name).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"model: {str(folder)!r} has no {name}; name the output folder of a finished run") from None
    except (ValueError, TypeError):
        raise ValueError(f"model: {folder}/{name} is not valid JSON; save the model again") from None
