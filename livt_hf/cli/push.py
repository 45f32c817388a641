"""Upload a trained model and its card to the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.options import Options, option
from .console import read_options

EXAMPLES = (
    "livt push --model classifier --hub_model_id org/livt-vit-b",
    "livt push --model classifier --hub_model_id org/livt-vit-b --private",
)


@dataclass
class PushArguments(Options):
    """Options of `livt push`."""

    TITLE: ClassVar[str] = "Upload"
    REQUIRED: ClassVar[tuple[str, ...]] = ("model", "hub_model_id")

    model: str = option("", "Folder of a classifier or a masked autoencoder.")
    hub_model_id: str = option("", "Repository, ORG/NAME; created if it does not exist.")
    private: bool = option(False, "Make a new repository private.", aliases=["hub_private_repo"])
    revision: str | None = option(None, "Branch to upload to (default: main).", aliases=["hub_revision"])
    create_pr: bool = option(False, "Open a pull request instead.")
    message: str = option("Upload the model", "Commit message.")


def run(argv: list[str]) -> int:
    args = read_options(PushArguments, argv, "livt push", __doc__, EXAMPLES)
    from ..hub.upload import check_repo_id, push_folder
    from ..reporting.card import ensure_card

    check_repo_id(args.hub_model_id)
    ensure_card(args.model, args.hub_model_id)
    url = push_folder(
        args.model,
        args.hub_model_id,
        private=args.private or None,
        revision=args.revision,
        create_pr=args.create_pr,
        commit_message=args.message,
    )
    print(url)
    return 0
