"""Uploads name no local folders: paths in records and commands are reduced to their last component.

New results and cards are written that way. This also covers older ones, configs, and the records in checkpoints, which
name the real paths because a run that is resumed is compared with them.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..reporting.provenance import public_command, public_name

NAMES = ("model", "dataset", "pretrained", "_name_or_path")
OPTIONS = ("arguments", "training_arguments")  # in the record of a run
TEXTS = (".md", ".html")


def public_contents(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """``{name: content}`` of those JSON and text files among ``names`` that name local folders, without these."""
    contents, commands = {}, {}
    for name in names:
        if name.endswith(".json") and isinstance(record := json.loads((folder / name).read_bytes()), dict):
            public = public_record(record)
            if public != record:
                contents[name] = (json.dumps(public, indent=2, ensure_ascii=False) + "\n").encode()
            if isinstance(command := record.get("command"), str):
                commands[command] = public["command"]
    for name in names:
        if name.endswith(TEXTS):
            text = before = (folder / name).read_text(encoding="utf-8")
            for old, new in commands.items():
                text = text.replace(old, new).replace(html.escape(old), html.escape(new))
            if text != before:
                contents[name] = text.encode()
    return contents


def public_record(record: dict[str, Any]) -> dict[str, Any]:
    """A config, results or the record of a run without the names of local folders."""
    public = dict(record)
    for key, value in record.items():
        if key in NAMES:
            public[key] = _public(value)
        elif key in OPTIONS:
            public[key] = {name: _public(option) for name, option in value.items()}
        elif key == "command" and isinstance(value, str):
            public[key] = public_command(value)
        elif key == "class_counts_from" and value:
            split, _, dataset = value.partition(" of ")
            public[key] = f"{split} of {public_name(dataset)}"
    return public


def _public(value: Any) -> Any:
    if isinstance(value, list):
        return [_public(entry) for entry in value]
    return public_name(value) if isinstance(value, str) else value
