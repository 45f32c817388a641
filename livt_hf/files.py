"""Files of an output folder: their names, and writing them so that a crash leaves the old or the new content."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MARKER = "complete.json"
METRICS_FILE = "metrics.jsonl"
RUN_FILE = "run.json"  # in the output folder of a finished run: its arguments and steps


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
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it holds either its old or its new content, whatever happens."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
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


def read_run(folder: Path) -> dict[str, Any] | None:
    """The record of the run that made the model in a folder; None if there is none, as beside a converted model."""
    try:
        return json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none without that file."""
    try:
        lines = (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def check_new_folder(folder: str | Path, option: str = "output_dir") -> Path:
    """The folder of an option as a path; ValueError unless it is new or empty."""
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{option}: {str(folder)!r} is not empty; name a new folder")
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / name).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(
            f"model: {str(folder)!r} has no {name}; name the output folder of a finished training"
        ) from None
    except (ValueError, TypeError):
        raise ValueError(f"model: {folder}/{name} is not valid JSON; save the model again") from None
