"""Check the folder of a model and upload it to the Hub in one commit.

`huggingface_hub.upload_folder` may make several commits (it does if hf_xet is installed): users could download a state
in between, and after an interruption the repository would contain a config without its weights.
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
from .local_paths import public_contents

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PROCESSOR = "preprocessor_config.json"
# Nothing else is uploaded: no pickles, no optimizer states, no run.json or bad_images.log.
PUBLISHED = re.compile(
    r"README\.md|config\.json|preprocessor_config\.json|metrics\.jsonl"
    r"|(evaluation/)?([\w-]+\.(png|svg)|results\.json|report\.(md|html)|(per_class|confusion)\.csv)"
    rf"|{EXAMPLES}/[^/]+\.(?i:png|jpg|jpeg)"  # the card's widget shows them
)
WEIGHT_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
# Seconds before each retry of a whole upload. The client itself retries most single requests up to 5 times.
WAITS = (2.0, 10.0, 30.0, 60.0)
LONGEST_WAIT = 600.0  # upper limit of a Retry-After

Result = TypeVar("Result")


def check_repo_id(repo_id: str) -> None:
    """ValueError unless ``repo_id`` is a valid repository name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"hub_model_id: {repo_id!r} is not a valid repository name ({reason}); write ORG/NAME"
        ) from None


# Checking


def check_model_folder(folder: str | Path) -> list[str]:
    """Check that a model's folder is complete and consistent, and return the names of the files to upload.

    Raises:
        ValueError: config, weights, image processor or card are missing, damaged or inconsistent.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"model: there is no folder {str(folder)!r}; give the output folder of a training run")
    config = read_json(folder, "config.json")
    weights = _check_weights(folder, config)
    _check_processor(folder, config)
    _check_card(folder)
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return sorted({name for name in names if PUBLISHED.fullmatch(name)} | set(weights))


def _check_weights(folder: Path, config: dict[str, Any]) -> list[str]:
    """The weight files that `from_pretrained` reads; their tensors must be those of the native class in the config."""
    native = getattr(transformers, str((config.get("architectures") or [None])[0]), None)
    if native is None:
        raise ValueError(
            f"model: {folder}/config.json: 'architectures' is not a class of transformers; save the model again"
        )
    files = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        if not (folder / WEIGHTS_INDEX).is_file():
            raise ValueError(f"model: {str(folder)!r} has no {WEIGHTS}; give the output folder of a finished run")
        shards = sorted(set(read_json(folder, WEIGHTS_INDEX).get("weight_map", {}).values()))
        files = [WEIGHTS_INDEX, *shards]
    found: Counter[tuple[int, ...]] = Counter()
    for name in files:
        if name == WEIGHTS_INDEX:
            continue
        if not WEIGHT_FILE.fullmatch(name) or not (folder / name).is_file():
            raise ValueError(f"model: {folder}/{WEIGHTS_INDEX} lists {name!r}, which is missing; save the model again")
        try:
            with safe_open(folder / name, "pt") as tensors:
                found.update(tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"model: {folder}/{name} is damaged: {first_line(error)}") from None
    # The names in the file differ from those of the modules; the shapes are the same.
    with torch.device("meta"):
        model = native(native.config_class.from_pretrained(folder))
    expected = Counter(tuple(tensor.shape) for tensor in model.state_dict().values())
    if found != expected:
        missing, surplus = (expected - found).total(), (found - expected).total()
        raise ValueError(
            f"model: the weights in {str(folder)!r} do not match its config.json (by shape, {missing} tensors are "
            f"missing, {surplus} unexpected); save the model again"
        )
    return files


def _check_processor(folder: Path, config: dict[str, Any]) -> None:
    processor = read_json(folder, PROCESSOR)
    size = processor.get("crop_size" if processor.get("do_center_crop") else "size") or {}
    side = size.get("height", size.get("shortest_edge"))
    if "image_size" in config and side != config["image_size"]:
        raise ValueError(
            f"model: {folder}/{PROCESSOR} produces images of {side} pixels, the model expects {config['image_size']}; "
            "save the image processor again"
        )


def _check_card(folder: Path) -> None:
    try:
        card = ModelCard((folder / "README.md").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"model: {str(folder)!r} has no README.md; `livt push` writes one") from None
    except Exception as error:  # any error of the YAML parser
        raise ValueError(f"model: the metadata of {folder}/README.md cannot be parsed: {first_line(error)}") from None
    if not card.data.to_dict().get("library_name"):
        raise ValueError(f"model: {folder}/README.md has no library_name in its metadata; delete it to get a new one")
    for picture in re.findall(r"!\[[^]]*\]\(([^)\s]+)\)", card.text):
        if "://" not in picture and not (folder / picture).is_file():
            raise ValueError(
                f"model: {folder}/README.md shows {picture}, which is missing; delete the line or add the file"
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
    """Upload a model's folder in one commit to a repository, which is created if it does not exist.

    The same commit deletes weight files of an earlier upload that are not part of this one (one file then, shards now).

    Args:
        private: visibility of a new repository; None is the Hub's default for the owner.
        revision: branch, created from main if it does not exist; None is main.
        create_pr: open a pull request instead.
        token: by default that of `hf auth login` or HF_TOKEN.
        files: names of the files to upload; by default those of `check_model_folder`.
        sleep, waits: how, and how many seconds, to wait before each retry after 429, 5xx or a lost connection.

    Returns:
        The URL of the repository, branch or pull request.

    Raises:
        ValueError: the folder is incomplete (see `check_model_folder`), or the upload failed.
    """
    check_repo_id(repo_id)
    if create_pr and revision not in (None, "main"):
        raise ValueError(
            f"revision: {revision!r} with create_pr: a pull request is opened against main; leave out one of them"
        )
    names = check_model_folder(folder) if files is None else files
    upload = _Upload(HfApi(token=token), Path(folder), names, repo_id, private, revision, create_pr, commit_message)
    full_id, url = _retried(upload.prepare, repo_id, sleep, waits, _is_temporary)
    # A pull request is retried only if the Hub refused the first one for certain: two would be worse than none.
    should_retry = _was_refused if create_pr else _is_temporary
    pr_url = _retried(lambda: upload.commit(full_id), repo_id, sleep, waits, should_retry)
    return pr_url or url + (f"/tree/{revision}" if revision and revision != "main" else "")


@dataclass(frozen=True)
class _Upload:
    """The two steps of an upload, each of which can be retried."""

    api: HfApi
    folder: Path
    names: Sequence[str]
    repo_id: str
    private: bool | None
    revision: str | None
    create_pr: bool
    commit_message: str

    def prepare(self) -> tuple[str, str]:
        """Create repository and branch, upload the large files to its storage; return the full id and the URL."""
        repo = self.api.create_repo(self.repo_id, private=self.private, exist_ok=True)
        if self.revision and self.revision != "main" and not self.revision.startswith("refs/"):
            self.api.create_branch(repo.repo_id, branch=self.revision, exist_ok=True)
        options: dict[str, Any] = {"revision": self.revision, "create_pr": self.create_pr, "free_memory": False}
        self.api.preupload_lfs_files(repo.repo_id, self._additions(), **options)
        return repo.repo_id, str(repo)

    def commit(self, full_id: str) -> str | None:
        """Commit all files; return the URL of the pull request, if it is one."""
        existing = self.api.list_repo_files(full_id, revision=self.revision)
        stale = [name for name in existing if WEIGHT_FILE.fullmatch(name) and name not in self.names]
        options: dict[str, Any] = {"revision": self.revision, "create_pr": self.create_pr}
        options["operations"] = [*self._additions(), *map(CommitOperationDelete, stale)]
        return self.api.create_commit(full_id, commit_message=self.commit_message, **options).pr_url

    def _additions(self) -> list[CommitOperationAdd]:
        """Rebuilt for each attempt, so that the client notices a commit whose response was lost."""
        public = public_contents(self.folder, self.names)
        return [CommitOperationAdd(name, public.get(name, self.folder / name)) for name in self.names]


def _retried(
    step: Callable[[], Result],
    repo_id: str,
    sleep: Callable[[float], object],
    waits: Sequence[float],
    should_retry: Callable[[Exception], bool],
) -> Result:
    for wait in (*waits, None):
        try:
            return step()
        except Exception as error:  # each library below the client has its own
            if wait is None or not should_retry(error):
                raise ValueError(_explain(error, repo_id)) from None
            sleep(max(wait, _retry_after(error)))
    raise AssertionError("the last attempt returns or raises")


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _is_temporary(error: Exception) -> bool:
    """Whether a retry may help: after 429, 5xx and lost connections."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in (408, 429) or status >= 500
    if isinstance(error, ValueError):
        return isinstance(error, json.JSONDecodeError)  # a truncated response, or an error page of a proxy
    return not isinstance(error, (OfflineModeIsEnabled, FileNotFoundError))


def _was_refused(error: Exception) -> bool:
    return _status(error) in (429, 503)


def _retry_after(error: Exception) -> float:
    """Seconds to wait according to the response; 0 without such a header."""
    text = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(text), LONGEST_WAIT) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0


def _explain(error: Exception, repo_id: str) -> str:
    """What happened and what to do, in one line."""
    status = _status(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "push_to_hub: HF_HUB_OFFLINE disables network access; unset it"
    if status == 401:
        return f"hub_model_id: uploading to {repo_id!r} requires a login (401); run `hf auth login`"
    if status == 403:
        return (
            f"hub_model_id: your token has no write access to {repo_id!r} (403); log in with one that has "
            "(`hf auth login`), use your own name or organization, or --create_pr"
        )
    if status == 404:
        return f"hub_model_id: {repo_id!r} or the revision was not found on the Hub (404); check their names"
    if status is not None:
        return f"hub_model_id: the Hub rejected the upload to {repo_id!r} ({status}: {first_line(error)})"
    return f"hub_model_id: the upload to {repo_id!r} failed ({type(error).__name__}: {first_line(error)})"


def first_line(error: Exception) -> str:
    """The first non-empty line of an error message, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), "no reason given")[:300]
