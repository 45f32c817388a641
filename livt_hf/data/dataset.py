"""Images that cannot be read: logged, counted, and an error when there are too many."""

from __future__ import annotations

from pathlib import Path


class BadImageError(ValueError):
    """An image that cannot be read where that cannot be helped. Its message is one line, also out of a worker."""

    def __init__(self, message: str):
        super().__init__(message.strip().splitlines()[-1].removeprefix(f"{__name__}.{type(self).__name__}: "))


def log_bad_image(reason: str, log: Path | None) -> None:
    """Append a line to the log, unless it is there already: from another worker or process, or from before a resume."""
    if log is None:
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a+", encoding="utf-8") as file:
        file.seek(0)
        if reason not in file.read().splitlines():
            file.write(reason + "\n")


def stop_if_too_many(count: int, limit: int, log: Path | None, last: str) -> None:
    if count > limit:
        where = f"see {log}" if log else f"the last is {last}"
        raise BadImageError(
            f"{count} training images cannot be read, more than --max_bad_images {limit}; {where}; repair them or "
            "raise the limit"
        )
