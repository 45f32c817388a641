"""Messages of the package on the terminal: information on stdout, warnings and errors on stderr, one line each."""

from __future__ import annotations

import logging
import os
import sys


class _Console(logging.Handler):
    """Writes to the streams of the moment, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stdout if record.levelno < logging.WARNING else sys.stderr)


def show_messages() -> None:
    """Show what the package logs. Of several processes, only the first one of each machine shows information."""
    logger = logging.getLogger("livt_hf")
    if not any(isinstance(handler, _Console) for handler in logger.handlers):
        logger.addHandler(_Console())
    logger.setLevel(logging.INFO if int(os.environ.get("LOCAL_RANK", 0)) == 0 else logging.WARNING)
