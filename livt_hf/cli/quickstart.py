"""Run the whole method on scikit-learn's digits, in minutes on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..config.options import Options, option
from .console import read_options

EXAMPLES = ("livt quickstart --output_dir quick",)


@dataclass
class QuickstartArguments(Options):
    """Options of `livt quickstart`."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("output_dir",)

    output_dir: str = option("", "New folder for the report, pictures and the model.")


def run(argv: list[str]) -> int:
    args = read_options(QuickstartArguments, argv, "livt quickstart", __doc__, EXAMPLES)
    from ..training.quickstart import quickstart

    return 0 if quickstart(Path(args.output_dir)) else 1
