"""What all commands share: reading their options, and the messages of the package on the terminal."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from ..config.hub_ids import check_reachable
from ..config.parsing import AnyOptions, AnyStage, parse, parse_arguments


def read_options(
    options: type[AnyOptions], argv: Sequence[str], prog: str, about: str | None, examples: Sequence[str]
) -> AnyOptions:
    """The options of a command; only after them is anything slow imported.

    Args:
        about: docstring of the command's module.
    """
    values = parse(options, argv, prog, about, examples)
    check_hub_ids(values)
    hide_loading_bars()
    return values


def read_stage(
    stage: type[AnyStage], argv: Sequence[str], prog: str, about: str | None, examples: Sequence[str]
) -> tuple[AnyStage, dict[str, Any]]:
    """The same for one of the two stages, with the further `TrainingArguments` that were given."""
    values = parse_arguments(stage, argv, prog, about, examples)
    check_hub_ids(values[0])
    hide_loading_bars()
    return values


def check_hub_ids(values: Any) -> None:
    """ValueError if an option names a model or dataset on the Hub, and there is no connection."""
    for option in ("dataset", "pretrained", "model", "mae"):
        names = getattr(values, option, None) or ()
        for name in [names] if isinstance(names, str) else names:
            check_reachable(option, name)


def hide_loading_bars() -> None:
    """Turn off transformers' progress bars, one per file read or written, which would hide the one that matters."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


class _Console(logging.Handler):
    """Writes to the current streams, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stdout if record.levelno < logging.WARNING else sys.stderr)


def show_messages() -> None:
    """Show the log of the package: information on stdout, warnings and errors on stderr, one line each.

    Of several processes, only the first one of each machine shows information.
    """
    logger = logging.getLogger("livt_hf")
    if not any(isinstance(handler, _Console) for handler in logger.handlers):
        logger.addHandler(_Console())
    logger.setLevel(logging.INFO if int(os.environ.get("LOCAL_RANK", 0)) == 0 else logging.WARNING)
