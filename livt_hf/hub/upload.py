"""Check the folder of a model and upload it to the Hub in one commit.

One commit, because everybody downloads what lies between two: `huggingface_hub.upload_folder` may make several
(it does where hf_xet is installed), and after an interruption the repository would hold a config without its weights.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from ..files import read_json
from ..reporting.card_metadata import EXAMPLES

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PROCESSOR = "preprocessor_config.json"
# Everything else is not uploaded: pickles, optimizer states, run.json and bad_images.log with their local paths.
PUBLISHED = re.compile(
    r"README\.md|config\.json|preprocessor_config\.json|metrics\.jsonl"
    r"|(evaluation/)?([\w-]+\.(png|svg)|results\.json|report\.(md|html))"
    rf"|{EXAMPLES}/[^/]+\.(?i:png|jpg|jpeg)"  # the card's widget shows them
)
WEIGHT_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
# Seconds before the next try of a whole upload. The client itself repeats most single requests up to 5 times.
WAITS = (2.0, 10.0, 30.0, 60.0)
LONGEST_WAIT = 600.0  # what a Retry-After is cut to


def check_repo_id(repo_id: str) -> None:
    """ValueError, in one line, unless it is a valid name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"hub_model_id: {repo_id!r} cannot name a repository ({reason}); write ORG/NAME") from None


Result = TypeVar("Result")


# Checking


def check_folder(folder: str | Path) -> list[str]:
    """The files of a model's folder that are published, after a check that they are complete and fit each other.

    Raises:
        ValueError: config, weights, image processor or card are missing, damaged, or do not fit each other.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"model: there is no folder {str(folder)!r}; name the output folder of a training")
    config = read_json(folder, "config.json")
    weights = _check_weights(folder, config)
    _check_processor(folder, config)
    _check_card(folder)
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return sorted({name for name in names if PUBLISHED.fullmatch(name)} | set(weights))


def _check_weights(folder: Path, config: dict[str, Any]) -> list[str]:
    """The weight files that `from_pretrained` reads, whose tensors are those of the native class in the config."""
    native = getattr(transformers, str((config.get("architectures") or [None])[0]), None)
    if native is None:
        raise ValueError(f"model: {folder}/config.json names no class of transformers under 'architectures'")
    files = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        if not (folder / WEIGHTS_INDEX).is_file():
            raise ValueError(f"model: {str(folder)!r} has no {WEIGHTS}; name the output folder of a finished training")
        shards = sorted(set(read_json(folder, WEIGHTS_INDEX).get("weight_map", {}).values()))
        files = [WEIGHTS_INDEX, *shards]
    found: Counter[tuple[int, ...]] = Counter()
    for name in files:
        if name == WEIGHTS_INDEX:
            continue
        if not WEIGHT_FILE.fullmatch(name) or not (folder / name).is_file():
            raise ValueError(f"model: {folder}/{WEIGHTS_INDEX} names {name!r}, which is not there")
        try:
            with safe_open(folder / name, "pt") as tensors:
                found.update(tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"model: {folder}/{name} is damaged: {first_line(error)}") from None
    # Names in the file are not those of the modules; shapes are the same.
    with torch.device("meta"):
        model = native(native.config_class.from_pretrained(folder))
    expected = Counter(tuple(tensor.shape) for tensor in model.state_dict().values())
    if found != expected:
        missing, surplus = (expected - found).total(), (found - expected).total()
        raise ValueError(
            f"model: the weights in {str(folder)!r} are not those of its config.json: {missing} tensors of the model "
            f"have none of their shape, {surplus} are not the model's; save the model again"
        )
    return files


def _check_processor(folder: Path, config: dict[str, Any]) -> None:
    processor = read_json(folder, PROCESSOR)
    size = processor.get("crop_size" if processor.get("do_center_crop") else "size") or {}
    side = size.get("height", size.get("shortest_edge"))
    if "image_size" in config and side != config["image_size"]:
        raise ValueError(
            f"model: {folder}/{PROCESSOR} makes images of {side} pixels, the model takes {config['image_size']}"
        )


def _check_card(folder: Path) -> None:
    try:
        card = ModelCard((folder / "README.md").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"model: {str(folder)!r} has no README.md; `livt push` writes it") from None
    except Exception as error:  # whatever the YAML parser throws
        raise ValueError(f"model: the metadata of {folder}/README.md cannot be read: {first_line(error)}") from None
    if not card.data.to_dict().get("library_name"):
        raise ValueError(f"model: {folder}/README.md has no library_name in its metadata; delete it to get a new one")
    for picture in re.findall(r"!\[[^]]*\]\(([^)\s]+)\)", card.text):
        if "://" not in picture and not (folder / picture).is_file():
            raise ValueError(
                f"model: {folder}/README.md shows {picture}, which is not there; delete the line, or draw it"
            )


# Uploading


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload the model",
    token: str | None = None,
    files: Sequence[str] | None = None,
    sleep: Callable[[float], object] = time.sleep,
    waits: Sequence[float] = WAITS,
) -> str:
    """Upload a model's folder in one commit to a repository, which is made if it does not exist.

    Weight files of an earlier upload that this one has not (one file then, shards now) leave in the same commit.

    Args:
        private: of a new repository; None leaves it to the Hub's default for the owner.
        revision: branch, made from main if it does not exist; None is main.
        create_pr: open a pull request instead.
        token: None is that of `hf auth login` or HF_TOKEN.
        files: what to upload; None is what `check_folder` returns.
        sleep, waits: how, and how many seconds, to wait before each further try after 429, 5xx or a lost connection.

    Returns:
        The URL of the repository, branch or pull request.

    Raises:
        ValueError: the folder is not complete (see `check_folder`), or the Hub did not take it; one line says why.
    """
    check_repo_id(repo_id)
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"revision: {revision!r} with create_pr: a pull request goes to main; leave out one of them")
    names = check_folder(folder) if files is None else files
    upload = _Upload(HfApi(token=token), Path(folder), names, repo_id, private, revision, create_pr, commit_message)
    full_id, url = _retried(upload.prepare, repo_id, sleep, waits, _may_pass)
    # A second pull request is worse than none: one is tried again only if the Hub has surely refused the first.
    may_pass = _was_refused if create_pr else _may_pass
    pr_url = _retried(lambda: upload.commit(full_id), repo_id, sleep, waits, may_pass)
    return pr_url or url + (f"/tree/{revision}" if revision and revision != "main" else "")


@dataclass(frozen=True)
class _Upload:
    """The two steps of an upload, each of which may be tried again."""

    api: HfApi
    folder: Path
    names: Sequence[str]
    repo_id: str
    private: bool | None
    revision: str | None
    create_pr: bool
    commit_message: str

    def prepare(self) -> tuple[str, str]:
        """(full id, URL) of a repository that has the branch and, in its storage, all large files."""
        repo = self.api.create_repo(self.repo_id, private=self.private, exist_ok=True)
        if self.revision and self.revision != "main" and not self.revision.startswith("refs/"):
            self.api.create_branch(repo.repo_id, branch=self.revision, exist_ok=True)
        options: dict[str, Any] = {"revision": self.revision, "create_pr": self.create_pr, "free_memory": False}
        self.api.preupload_lfs_files(repo.repo_id, self._additions(), **options)
        return repo.repo_id, str(repo)

    def commit(self, full_id: str) -> str | None:
        """One commit with all files; the URL of its pull request, if it is one."""
        there = self.api.list_repo_files(full_id, revision=self.revision)
        stale = [name for name in there if WEIGHT_FILE.fullmatch(name) and name not in self.names]
        options: dict[str, Any] = {"revision": self.revision, "create_pr": self.create_pr}
        options["operations"] = [*self._additions(), *map(CommitOperationDelete, stale)]
        return self.api.create_commit(full_id, commit_message=self.commit_message, **options).pr_url

    def _additions(self) -> list[CommitOperationAdd]:
        """Rebuilt for each try: a commit whose answer was lost is then found to be there already."""
        return [CommitOperationAdd(name, self.folder / name) for name in self.names]


def _retried(
    step: Callable[[], Result],
    repo_id: str,
    sleep: Callable[[float], object],
    waits: Sequence[float],
    may_pass: Callable[[Exception], bool],
) -> Result:
    for wait in (*waits, None):
        try:
            return step()
        except Exception as error:  # each library below the client throws its own
            if wait is None or not may_pass(error):
                raise ValueError(_explain(error, repo_id)) from None
            sleep(max(wait, _retry_after(error)))
    raise AssertionError("the last try returns or raises")


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _may_pass(error: Exception) -> bool:
    """Whether another try may help: after 429, 5xx and lost connections."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in (408, 429) or status >= 500
    if isinstance(error, ValueError):
        return isinstance(error, json.JSONDecodeError)  # half an answer, or an error page of a proxy
    return not isinstance(error, (OfflineModeIsEnabled, FileNotFoundError))


def _was_refused(error: Exception) -> bool:
    return _status(error) in (429, 503)


def _retry_after(error: Exception) -> float:
    """Seconds that the Hub asks to wait; 0 if it does not say."""
    text = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(text), LONGEST_WAIT) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0


def _explain(error: Exception, repo_id: str) -> str:
    """One line: what happened and what to do."""
    status = _status(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "push_to_hub: HF_HUB_OFFLINE forbids to use the network; unset it"
    if status == 401:
        return f"hub_model_id: the Hub asks who you are before it takes {repo_id!r} (401); run `hf auth login`"
    if status == 403:
        return (
            f"hub_model_id: your token may not write to {repo_id!r} (403); log in with one that may (`hf auth login`), "
            "your own name or organization, or --create_pr"
        )
    if status == 404:
        return f"hub_model_id: {repo_id!r} or the revision was not found on the Hub (404); check their names"
    if status is not None:
        return f"hub_model_id: the Hub did not take {repo_id!r} ({status}: {first_line(error)})"
    return f"hub_model_id: the upload of {repo_id!r} failed ({type(error).__name__}: {first_line(error)})"


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), "no reason given")[:300]
