"""One run at a time in an output folder: a lock of the operating system, which a crash or ``kill -9`` releases."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from ..files import LOCK_FILE, RUN_FILE, check_folder

# Seconds before a folder counts as taken: longer than another process needs to let go of it.
PATIENCE = 0.5


@contextmanager
def lock_folder(folder: str | Path, option: str = "output_dir") -> Iterator[None]:
    """Keep other runs out of a folder, which is created if need be, and removed if it is empty in the end.

    Of several processes of one run, only the first one (RANK 0) locks. The lock can be taken again by code that runs
    inside it. The read-only folder of a finished run is not locked: there is nothing left to write.

    Args:
        option: option that names the folder, for the error message.

    Raises:
        ValueError: another run has locked the folder, or it is a file, read-only, or cannot be created.
    """
    path = Path(folder)
    lock = filelock.FileLock(path.absolute() / LOCK_FILE, timeout=PATIENCE, is_singleton=True)
    if int(os.environ.get("RANK", 0)) != 0 or lock.is_locked:
        yield
        return
    created = [place for place in (path, *path.parents) if not place.exists()]
    if not _acquired(lock, path, option):
        yield
        return
    try:
        holder = {"host": platform.node(), "process": os.getpid(), "start": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):  # only for the message to others
            Path(lock.lock_file).write_text(json.dumps(holder), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            # Before the release, so that it is not another run's file; filelock notices that a file was removed.
            Path(lock.lock_file).unlink()
        lock.release()
        with suppress(OSError):  # not empty
            for place in created:
                place.rmdir()


def _acquired(lock: filelock.BaseFileLock, path: Path, option: str) -> bool:
    """Whether the folder is locked now; False if it is that of a finished run, and read-only."""
    for _ in range(3):  # a run that ends beside this one may remove the folder again
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            return True
        except filelock.Timeout:
            raise ValueError(
                f"{option}: {str(path)!r} is in use by another run ({_holder(Path(lock.lock_file))}); "
                "wait for its end, or name another folder"
            ) from None
        except FileNotFoundError:
            continue
        except OSError as error:
            if (path / RUN_FILE).is_file() and not os.access(path, os.W_OK):
                return False
            check_folder(path, option)
            raise ValueError(f"{option}: {str(path)!r} cannot be locked ({error.strerror or error})") from None
    raise ValueError(f"{option}: {str(path)!r} was removed while it was opened; name another folder")


def _holder(file: Path) -> str:
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        return f"process {holder['process']} on {holder['host']}, since {holder['start']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "which has just begun or ended"
