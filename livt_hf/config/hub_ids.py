"""Names of models and datasets: whether one on the Hub can be loaded now, and what a mistyped one may have meant."""

from __future__ import annotations

import difflib
import functools
import itertools
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path

from .options import did_you_mean

KNOWN = {
    "model": (
        *(f"facebook/vit-mae-{size}" for size in ("base", "large", "huge")),
        *(f"facebook/dinov2-{size}" for size in ("small", "base", "large")),
        *(f"facebook/deit-{size}-patch16-224" for size in ("tiny", "small", "base")),
        *(f"openai/clip-vit-{size}" for size in ("base-patch32", "base-patch16", "large-patch14")),
        *(f"google/{name}-base-patch16-224" for name in ("vit", "siglip", "siglip2")),
        "microsoft/swin-tiny-patch4-window7-224",
        "microsoft/resnet-50",
    ),
    "dataset": ("uoft-cs/cifar10", "uoft-cs/cifar100"),
}
SECONDS = 4.0  # for a first answer of the Hub; the client itself tries for half a minute
MOST_FOLDERS = 1000  # to look for a mistyped one


def check_reachable(option: str, name: str) -> None:
    """ValueError if a Hub id cannot be loaded because there is no connection.

    It is for commands, before they import anything slow. In offline mode, and of names other than "ORG/NAME", it checks
    nothing: the error comes from those who load them.
    """
    kind = "dataset" if option == "dataset" else "model"
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) or Path(name).exists():
        return
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or (reason := why_unavailable(name, kind)) is None:
        return
    near = similar_name(name, kind) or " give a folder, or another Hub id"
    raise ValueError(f"{option}: {name!r} cannot be loaded: {reason};{near}")


def why_unavailable(repo_id: str, kind: str) -> str | None:
    """Why a model or dataset on the Hub cannot be loaded now; None if it may be.

    Args:
        kind: "model" or "dataset".
    """
    from huggingface_hub import constants

    if repo_id in _cached(kind):
        return None
    if constants.HF_HUB_OFFLINE:
        return "it is not in the local cache, and offline mode is on (HF_HUB_OFFLINE)"
    if not _answers(constants.ENDPOINT):
        return f"it is not in the local cache, and {constants.ENDPOINT} cannot be reached"
    return None


@functools.cache
def _answers(endpoint: str) -> bool:
    """Whether anything answers there, a proxy included; a server that is only slow does."""
    from huggingface_hub.utils import get_session

    found: list[bool] = []

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=SECONDS)
            found.append(True)
        except Exception as error:  # the client's library has changed with its releases
            found.append("ReadTimeout" in type(error).__name__)

    thread = threading.Thread(target=ask, daemon=True)  # resolving a name has no timeout of its own
    thread.start()
    thread.join(SECONDS + 0.5)
    return any(found)


def similar_name(name: str, kind: str, more: Iterable[str] = ()) -> str:
    """ " did you mean 'NEAREST'?", or nothing: of local folders, the local cache, well-known ids and ``more``."""
    ids = [*_cached(kind), *KNOWN[kind], *more]
    if name in ids:
        return ""
    # Of folders, the last component counts: the rest of a path is often the same, and long.
    folders = {folder.name: str(folder) for folder in _folders(name, kind)}
    near = difflib.get_close_matches(Path(name).name, folders, n=1, cutoff=0.75)
    return did_you_mean(name, ids) or (f" did you mean {folders[near[0]]!r}?" if near else "")


def _folders(name: str, kind: str) -> list[Path]:
    """Folders beside the one that was meant, and one level below the current one; of models, those with a config."""
    beside = Path(name).expanduser().parent
    found = itertools.islice(itertools.chain(_subfolders(beside), _below(Path())), MOST_FOLDERS)
    return [folder for folder in found if kind == "dataset" or (folder / "config.json").is_file()]


def _below(folder: Path) -> Iterable[Path]:
    return itertools.chain.from_iterable(_subfolders(child) for child in _subfolders(folder))


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError:
        return []


def _cached(kind: str) -> list[str]:
    """Ids in the caches of the Hub's client and of `datasets`, of which at least a part was downloaded."""
    from huggingface_hub import constants

    prefix = f"{kind}s--"
    folders = Path(constants.HF_HUB_CACHE).glob(f"{prefix}*/snapshots/*")
    found = {folder.parents[1].name.removeprefix(prefix).replace("--", "/") for folder in folders}
    if kind == "dataset":
        prepared = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
        found |= {folder.name.replace("___", "/") for folder in Path(prepared).glob("*___*")}
    return sorted(found)
