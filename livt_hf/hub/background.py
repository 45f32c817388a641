"""Uploads to the Hub during training, in a background thread: training neither waits for it nor fails with it."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.utils import disable_progress_bars

from ..files import MARKER, incompleteness, write_bytes, write_text
from ..reporting.blocks import escape_markdown
from ..reporting.card import ensure_card, plain_card
from .local_paths import public_contents
from .upload import WAITS, WEIGHT_FILE, check_model_folder, check_repo_id, first_line, push_folder

logger = logging.getLogger(__name__)


class _Snapshot(NamedTuple):
    folder: Path
    names: list[str]
    message: str


class BackgroundPusher:
    """Uploads checkpoints in a background thread, whose errors are logged and do not stop training.

    It uploads snapshots, hard links in ``output_dir/.push``, since a checkpoint may be deleted during its upload. A
    newer snapshot replaces one that is still queued.

    Args:
        repo_id: "org/name".
        output_dir: folder of the run.
        processor: image processor, which checkpoints lack.
        strategy: as Trainer's ``hub_strategy``: "end" uploads the final model only, "every_save" also that of each
            checkpoint, "checkpoint" also the whole newest checkpoint as ``last-checkpoint``, to resume from, and
            "all_checkpoints" each under its own name.
        private, revision, token, waits: see `push_folder`.

    Attributes:
        errors: the messages of failed uploads.
    """

    def __init__(
        self,
        repo_id: str,
        output_dir: str | Path,
        processor: Any,
        *,
        strategy: str = "every_save",
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        waits: Sequence[float] = WAITS,
    ):
        check_repo_id(repo_id)
        self.repo_id, self.output_dir, self.processor, self.strategy = repo_id, Path(output_dir), processor, strategy
        self._destination: dict[str, Any] = {"private": private, "revision": revision, "token": token, "waits": waits}
        self._snapshots = self.output_dir / ".push"
        self._condition = threading.Condition()
        self._ending = threading.Event()
        self._queued: _Snapshot | None = None
        self._thread: threading.Thread | None = None
        self.errors: list[str] = []
        disable_progress_bars()  # they would interfere with that of the training loop
        shutil.rmtree(self._snapshots, ignore_errors=True)  # left by a killed run

    def push(self, checkpoint: str | Path, message: str) -> None:
        """Queue the upload of a checkpoint's model, if the strategy includes it. Returns at once; errors are logged.

        A checkpoint of light fine-tuning has no whole model; only the strategies for whole checkpoints upload it.
        """
        if self.strategy == "end" or self._ending.is_set():
            return
        try:
            snapshot = self._snapshot(Path(checkpoint), message)
        except Exception as error:
            self._report_error(f"{checkpoint} could not be uploaded: {first_line(error)}")
            return
        if not snapshot.names:
            shutil.rmtree(snapshot.folder, ignore_errors=True)
            return
        with self._condition:
            replaced, self._queued = self._queued, snapshot
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="push_to_hub")
                self._thread.start()
            self._condition.notify()
        if replaced is not None:
            shutil.rmtree(replaced.folder, ignore_errors=True)

    def finish(self, folder: str | Path, message: str = "Upload the trained model") -> str | None:
        """Upload the final model and wait for it; return None, or a one-line message if the upload failed."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
        try:
            ensure_card(folder, self.repo_id)
            url = push_folder(folder, self.repo_id, commit_message=message, **self._destination)
        except ValueError as error:
            private, revision = self._destination["private"], self._destination["revision"]
            command = f"livt push --model {folder} --hub_model_id {self.repo_id}" + " --private" * bool(private)
            command += f" --revision {revision}" * bool(revision)
            return f"{error}; the model is in {folder}, upload it later with: {command}"
        finally:
            shutil.rmtree(self._snapshots, ignore_errors=True)
        logger.info(f"uploaded to {url}")
        return None

    def wait(self) -> None:
        """Block until nothing is queued or being uploaded."""
        with self._condition:
            self._condition.wait_for(lambda: self._thread is None or (self._queued is None and not self._busy))

    def stop(self) -> None:
        """Discard the queue and accept nothing more. An upload in progress is not awaited."""
        with self._condition:
            self._queued = None
            self._ending.set()
            self._condition.notify()

    _busy = False

    def _work(self) -> None:
        while True:
            with self._condition:
                self._busy = False
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._queued is not None or self._ending.is_set())
                if self._queued is None:
                    return
                snapshot, self._queued, self._busy = self._queued, None, True
            try:
                options = {"commit_message": snapshot.message, "sleep": self._ending.wait, **self._destination}
                push_folder(snapshot.folder, self.repo_id, files=snapshot.names, **options)
            except Exception as error:
                if not self._ending.is_set():
                    self._report_error(
                        f"{first_line(error)}; training continues, and the next checkpoint will be uploaded"
                    )
            shutil.rmtree(snapshot.folder, ignore_errors=True)

    def _snapshot(self, checkpoint: Path, message: str) -> _Snapshot:
        self._snapshots.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self._snapshots))
        try:
            names: list[str] = []
            if any(WEIGHT_FILE.fullmatch(file.name) for file in checkpoint.iterdir()):
                names = self._link_model(checkpoint, folder, message)
            if self.strategy in ("checkpoint", "all_checkpoints"):
                reason = incompleteness(checkpoint)
                if reason:
                    raise ValueError(f"{checkpoint} is not complete: {reason}")
                whole = "last-checkpoint" if self.strategy == "checkpoint" else checkpoint.name
                names += [f"{whole}/{name}" for name in _copy_checkpoint(checkpoint, folder / whole)]
            return _Snapshot(folder, names, message)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _link_model(self, checkpoint: Path, folder: Path, message: str) -> list[str]:
        """Link the model of a checkpoint, with its image processor and a card; return the names of the files."""
        for file in checkpoint.iterdir():
            if file.name == "config.json" or WEIGHT_FILE.fullmatch(file.name):
                _link(file, folder / file.name)
        self.processor.save_pretrained(folder)
        text = f"A model in training: {escape_markdown(message)}. The final model and its card will replace it."
        write_text(folder / "README.md", plain_card(folder, self.repo_id, text))
        return check_model_folder(folder)

    def _report_error(self, line: str) -> None:
        self.errors.append(line)
        logger.warning(line)


def _copy_checkpoint(checkpoint: Path, target: Path) -> list[str]:
    """Link the files of a complete checkpoint, its records without local paths; return their names."""
    sizes = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))["files"]
    public = public_contents(checkpoint, list(sizes))
    for name in sizes:
        if name in public:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target / name, public[name])
            sizes[name] = len(public[name])
        else:
            _link(checkpoint / name, target / name)
    write_text(target / MARKER, json.dumps({"files": sizes}))
    return [MARKER, *sizes]


def _link(file: Path, target: Path) -> None:
    """Hard-link a checkpoint's file, which is never modified in place; copy it if the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(file)
    except OSError:
        shutil.copy2(file, target)
