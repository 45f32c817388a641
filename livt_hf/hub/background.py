"""Publishing during training: one thread uploads, and the training neither waits for it nor sees its errors."""

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

from ..files import MARKER, incompleteness, write_text
from ..reporting.blocks import escape_markdown
from ..reporting.card import ensure_card, plain_card
from .upload import WAITS, WEIGHT_FILE, check_folder, check_repo_id, first_line, push_folder

logger = logging.getLogger(__name__)


class _Snapshot(NamedTuple):
    folder: Path
    names: list[str]
    message: str


class BackgroundPusher:
    """Uploads during training: one thread, which the training never waits for and whose errors it never sees.

    It uploads a snapshot of hard links in ``output_dir/.push``, because checkpoints are deleted meanwhile. A newer
    snapshot replaces one that still waits.

    Args:
        repo_id: "org/name".
        output_dir: folder of the run.
        processor: image processor, which checkpoints lack.
        strategy: as Trainer's ``hub_strategy``: "end" uploads the final model only, "every_save" also that of each
            checkpoint, "checkpoint" also the whole newest checkpoint as ``last-checkpoint``, to resume from, and
            "all_checkpoints" each under its own name.
        private, revision, token, waits: as for `push_folder`.
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
        self._waiting: _Snapshot | None = None
        self._thread: threading.Thread | None = None
        self.errors: list[str] = []
        disable_progress_bars()  # they would run through that of the training
        shutil.rmtree(self._snapshots, ignore_errors=True)  # of a run that was killed

    def push(self, checkpoint: str | Path, message: str) -> None:
        """Upload the model of a checkpoint, if the strategy says so. Returns at once, and raises nothing."""
        if self.strategy == "end" or self._ending.is_set():
            return
        try:
            snapshot = self._snapshot(Path(checkpoint), message)
        except Exception as error:
            self._note(f"{checkpoint} was not uploaded: {first_line(error)}")
            return
        with self._condition:
            replaced, self._waiting = self._waiting, snapshot
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="push_to_hub")
                self._thread.start()
            self._condition.notify()
        if replaced is not None:
            shutil.rmtree(replaced.folder, ignore_errors=True)

    def finish(self, folder: str | Path, message: str = "Upload the trained model") -> str | None:
        """Upload the final model, with waits and retries; one line if that failed, or None."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
        try:
            ensure_card(folder, self.repo_id)
            url = push_folder(folder, self.repo_id, commit_message=message, **self._destination)
        except ValueError as error:
            private, revision = self._destination["private"], self._destination["revision"]
            again = f"livt push --model {folder} --hub_model_id {self.repo_id}" + " --private" * bool(private)
            again += f" --revision {revision}" * bool(revision)
            return f"{error}; the model is in {folder}, and this uploads it later: {again}"
        finally:
            shutil.rmtree(self._snapshots, ignore_errors=True)
        logger.info(f"uploaded to {url}")
        return None

    def wait(self) -> None:
        """Until nothing is waiting or being uploaded."""
        with self._condition:
            self._condition.wait_for(lambda: self._thread is None or (self._waiting is None and not self._busy))

    def stop(self) -> None:
        """Upload no more. An upload on its way may still arrive; it is not awaited."""
        with self._condition:
            self._waiting = None
            self._ending.set()
            self._condition.notify()

    _busy = False

    def _work(self) -> None:
        while True:
            with self._condition:
                self._busy = False
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._waiting is not None or self._ending.is_set())
                if self._waiting is None:
                    return
                snapshot, self._waiting, self._busy = self._waiting, None, True
            try:
                options = {"commit_message": snapshot.message, "sleep": self._ending.wait, **self._destination}
                push_folder(snapshot.folder, self.repo_id, files=snapshot.names, **options)
            except Exception as error:
                if not self._ending.is_set():
                    self._note(f"{first_line(error)}; the training goes on, and the next checkpoint is tried again")
            shutil.rmtree(snapshot.folder, ignore_errors=True)

    def _snapshot(self, checkpoint: Path, message: str) -> _Snapshot:
        self._snapshots.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self._snapshots))
        try:
            for file in checkpoint.iterdir():
                if file.name == "config.json" or WEIGHT_FILE.fullmatch(file.name):
                    _link(file, folder / file.name)
            self.processor.save_pretrained(folder)
            text = f"A model in training: {escape_markdown(message)}. The final model and its card will replace it."
            write_text(folder / "README.md", plain_card(folder, self.repo_id, text))
            names = check_folder(folder)
            if self.strategy in ("checkpoint", "all_checkpoints"):
                reason = incompleteness(checkpoint)
                if reason:
                    raise ValueError(f"{checkpoint} is not complete: {reason}")
                whole = "last-checkpoint" if self.strategy == "checkpoint" else checkpoint.name
                for name in (MARKER, *json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))["files"]):
                    _link(checkpoint / name, folder / whole / name)
                    names.append(f"{whole}/{name}")
            return _Snapshot(folder, names, message)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _note(self, line: str) -> None:
        self.errors.append(line)
        logger.warning(line)


def _link(file: Path, target: Path) -> None:
    """A hard link: files of a checkpoint are replaced, never written again. A copy where the disk has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(file)
    except OSError:
        shutil.copy2(file, target)
