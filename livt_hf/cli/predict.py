"""Predict the most probable classes of image files."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ..config.options import AT_LEAST_1, FRACTION, Options, option
from .console import read_options

logger = logging.getLogger(__name__)

EXAMPLES = (
    "livt predict --model classifier photo.jpg",
    "livt predict --model classifier 'new/**/*.jpg' --output predictions.csv",
    "livt predict --model classifier new --sort_into sorted --min_score 0.6",
)


@dataclass
class PredictArguments(Options):
    """Options of `livt predict`."""

    TITLE: ClassVar[str] = "Prediction"
    REQUIRED: ClassVar[tuple[str, ...]] = ("model",)

    images: list[str] = option([], "Files, folders, 'patterns/**/*.jpg'.", positional="IMAGE")
    model: str = option("", "Folder or Hub id of the classifier.")
    output: str | None = option(
        None, "FILE.jsonl or FILE.csv (default: lines on the terminal).", aliases=["output_dir"]
    )
    top_k: int = option(5, "Number of classes per image.")
    probabilities: Literal["top", "all"] = option(
        "top", "top: of the --top_k classes; all: also of every class, one column each in --output."
    )
    min_score: float | None = option(
        None, "Abstain below this score: no label, in --sort_into the folder uncertain (default: never).", FRACTION
    )
    tta: Literal["none", "flip", "fivecrop"] = option(
        "none", "Test-time ensembling: mean probabilities of the image and its mirror (2x the cost) or of 5 crops (5x)."
    )
    sort_into: str | None = option(None, "New folder for copies of the images, in folders of their predicted classes.")
    batch_size: int = option(16, "Batch size.", AT_LEAST_1)
    device: str | None = option(None, "Device, e.g. cpu or cuda:1 (default: the GPU if there is one).")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probabilities == "all" and self.output is None:
            raise ValueError(
                "probabilities: those of all classes go to a file; name it with --output FILE.csv or FILE.jsonl"
            )

    def require(self) -> None:
        if not self.model:
            model, *images = self.images
            if not images:
                model, images = ("MODEL", [model]) if Path(model).is_file() else (model, ["IMAGE"])
            command = shlex.join(["livt", "predict", "--model", model, *images])
            raise ValueError(f"model: none was given; did you mean `{command}`?")


def run(argv: list[str]) -> int:
    args = read_options(PredictArguments, argv, "livt predict", __doc__, EXAMPLES)
    from tqdm.auto import tqdm

    from ..evaluation.predict import (
        abstain_below,
        calibration_advice,
        find_images,
        predict_images,
        print_predictions,
        write_predictions,
    )
    from ..evaluation.sorting import sort_into
    from ..reporting.blocks import counted

    files = find_images(args.images)
    shown = (args.top_k, args.batch_size, args.device, args.probabilities == "all", args.tta)
    results = predict_images(args.model, files, *shown)
    if args.min_score is not None:
        results = abstain_below(results, args.min_score)
    if args.sort_into is not None:
        results = sort_into(results, args.sort_into)
    if advice := calibration_advice(args.model):
        logger.warning(advice)
    if args.output is None:
        return print_predictions(results)
    errors = write_predictions(tqdm(results, "predict", len(files), unit="image", disable=None), args.output)
    print(f"{len(files) - errors:,} of {counted(len(files), 'image')} predicted: {args.output}")
    return int(errors > 0)
